"""Conversion of a dataset of raw scans, in one or several processes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.cohort import participants, write_subject
from dualflow.commit import commit_text
from dualflow.config import ConvertConfig, PreprocessConfig, StudyConfig
from dualflow.data.quarantine import FACT, Quarantine, read_quarantine
from dualflow.data.raw_scans import PERMANENT
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.tsv import read_table
from dualflow.digests import digest_of
from dualflow.errors import CommitError, ConfigError
from dualflow.inference import batch, convert, scan_conversion
from dualflow.inference.batch import Compute
from dualflow.inference.conversion import convert_inputs
from dualflow.inference.inputs import resolve_inputs
from dualflow.layout import Layout, Scan
from dualflow.lifetime import exclusive
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.models.store import load_card

CONFIG = ConvertConfig(samples=2, keep_samples=1)
PREPROCESS = PreprocessConfig(spacing_mm=8.0, shape=(24, 32, 24), bias_field=False)
# Tests share module fixtures that convert scans, so they run in one worker.
pytestmark = pytest.mark.xdist_group("batch conversion")

DESCS = {"synth", "synthmean", "synthstd", "synth01"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three raw scans: a head, the same file truncated, and noise; the first subject has an age."""
    bids = tmp_path_factory.mktemp("study") / "bids"
    write_subject(bids, participants(1, 0)[0])
    (bids / "dataset_description.json").write_text('{"Name": "batch", "BIDSVersion": "1.10.0"}')
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-C0001\t71\nsub-C0002\tn/a\n")
    whole = next((bids / "sub-C0001/anat").glob("*_T1w.nii.gz"))
    for label in ("C0002", "C0003"):
        path = bids / f"sub-{label}/anat/sub-{label}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(whole.read_bytes()[:9000])
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.diag([4.0, 4, 4, 1])), path)
    return bids


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_flow, small_flow, card):
    """Folder of an untrained flow for the coarse grid."""
    coarse = card.model_copy(update={"shape": PREPROCESS.shape, "preprocess": PREPROCESS})
    return save_flow(tmp_path_factory.mktemp("model"), small_flow, coarse)


@pytest.fixture(scope="module")
def converted(study, model, tmp_path_factory):
    """Output folder and table of a conversion by two worker processes; tests do not change the folder."""
    out = tmp_path_factory.mktemp("out")
    return out, convert_inputs([study], model, out, CONFIG, compute=Compute(workers=2))


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (Compute(workers=0), "workers = 0: expected at least 1"),
        (Compute(workers=-1), "workers = -1: expected at least 1"),
        (Compute(device="gpu"), "--device = gpu: expected one of auto, cpu, cuda"),
    ],
)
def test_workers_and_device_are_checked_first(compute, message):
    """Python takes values that the command line refuses."""
    with pytest.raises(ConfigError, match=message):
        compute.check()


def volumes(out):
    """Converted volumes of a dataset by `desc`."""
    return {path.name.split("desc-")[1].split("_")[0]: path for path in out.glob("sub-*/pet/*.nii.gz")}


@pytest.mark.slow
def test_usable_scans_are_converted_and_the_others_excluded(converted, study, model):
    """Volumes of the head are on its native grid; quarantine.tsv lists the other scans with reasons."""
    out, table = converted
    rows = read_quarantine(out / "quarantine.tsv")
    assert [row.scan for row in rows] == ["sub-C0002", "sub-C0003"]
    assert all(row.step == "preprocess" and row.reason for row in rows)
    assert table["verdict"].tolist() == ["failed", "failed", "ok"]
    assert table["converted"].tolist() == [False, False, True]
    assert table["reason"].tolist()[:2] == [row.reason for row in rows]
    assert [row["scan"] for row in read_table(out / "conversion.tsv").to_dict("records")] == table["scan"].tolist()
    source = nib.load(next((study / "sub-C0001/anat").glob("*_T1w.nii.gz")))
    assert set(volumes(out)) == DESCS
    for path in volumes(out).values():
        image = nib.load(path)
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["Name"] == "dualflow derivatives of batch"
    readme = (out / "README").read_text()
    assert all(path.name.replace("C0001", "LABEL") in readme for path in out.glob("sub-C0001/*/*.nii.gz"))
    assert not any(name in readme for name in ("Measured", "impute", "T1w, FDG"))
    assert table["model"].tolist()[2] == load_card(model).weights_sha256[:12]
    sidecar = json.loads(next((out / "sub-C0001/pet").glob("*desc-synth_pet.json")).read_text())
    assert sidecar["SideInformation"] == {"age": 71.0}
    manifest = json.loads((out / "manifests/convert/sub-C0001.json").read_text())
    assert manifest["facts"]["origin"].startswith(f"{digest_of(str(study.resolve()))}-")
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.slow
def test_only_scans_with_changed_inputs_are_converted_again(converted, study, model, tmp_path):
    """Equal inputs write nothing; another number of samples or another age repeats the conversion."""
    out = shutil.copytree(converted[0], tmp_path / "out")

    def rerun(config):
        before = {desc: (path.stat().st_mtime_ns, path.read_bytes()) for desc, path in volumes(out).items()}
        convert_inputs([study], model, out, config)
        after = {desc: (path.stat().st_mtime_ns, path.read_bytes()) for desc, path in volumes(out).items()}
        return {desc for desc in DESCS if before[desc][0] != after[desc][0]}, before, after

    assert rerun(CONFIG)[0] == set()
    written, before, after = rerun(CONFIG.model_copy(update={"samples": 3}))
    assert written == DESCS
    assert before["synth"][1] == after["synth"][1]
    table = study / "participants.tsv"
    text = table.read_text()
    try:
        table.write_text(text.replace("71", "n/a"))
        assert rerun(CONFIG.model_copy(update={"samples": 3}))[0] == DESCS
    finally:
        table.write_text(text)


@pytest.mark.slow
def test_a_table_of_samples_is_converted_by_a_model_of_two_sources(study, save_flow, small_flow, card, tmp_path):
    """The extra source of the card is aligned and recorded; a row without it is excluded."""
    record = card.study.model_copy(update={"extra_sources": ("FLAIR",)})
    changes = {"shape": PREPROCESS.shape, "preprocess": PREPROCESS, "study": record}
    model = save_flow(tmp_path / "model", small_flow, card.model_copy(update=changes))
    data, out = tmp_path / "my data", tmp_path / "out"
    t1w = next((study / "sub-C0001/anat").glob("*_T1w.nii.gz"))
    data.mkdir()
    shutil.copy(t1w, data / "a head.nii.gz")
    rows = ["subject\tT1w\tFLAIR\tage", "C0001\ta head.nii.gz\tits FLAIR.nii.gz\t71", "C0002\ta head.nii.gz\tn/a\t70"]
    (data / "samples.tsv").write_text("\n".join(rows) + "\n")
    image, moved = nib.load(t1w), np.eye(4)
    moved[:3, 3] = (6, -4, 3)
    values = image.get_fdata(dtype=np.float32)
    flair = np.where(values > 0.1 * values.max(), 1.2 * values.max() - values, values)
    nib.save(nib.Nifti1Image(flair, moved @ image.affine), data / "its FLAIR.nii.gz")
    table = convert_inputs([data / "samples.tsv"], model, out, CONFIG)
    assert table["verdict"].tolist() == ["failed", "ok"]
    [row] = read_quarantine(out / "quarantine.tsv")
    assert row.scan == "sub-C0002"
    assert "FLAIR" in row.reason
    assert set(volumes(out)) == DESCS
    record = json.loads(next(out.glob("sub-C0001/anat/*_desc-preproc_T1w.json")).read_text())
    extra = record["extra_sources"]["FLAIR"]
    assert extra["file"] == "its FLAIR.nii.gz"
    np.testing.assert_allclose(extra["to_source"], np.linalg.inv(moved), atol=1)
    aligned = next(out.glob("sub-C0001/anat/*_desc-preproc_FLAIR.nii.gz"))
    assert nib.load(aligned).shape == PREPROCESS.shape
    sidecar = json.loads(next((out / "sub-C0001/pet").glob("*desc-synth_pet.json")).read_text())
    assert sidecar["SideInformation"] == {"age": 71.0}


def test_a_worker_loads_a_model_that_was_trained_again(study, model, tmp_path, monkeypatch):
    """Workers of a cluster outlive a conversion; they keep one model, and not an old one."""
    loads = []
    monkeypatch.setattr(batch.Converter, "load", lambda *_, **__: loads.append(1) or len(loads))
    batch._load_converter.cache_clear()
    layout, options = (
        Layout(tmp_path, "."),
        batch.Options(model, ("old", None), ConvertConfig(), "cpu", False, None, None),
    )
    changed = replace(options, digests=("new", None))
    answers = [
        batch._load_converter(layout, "T1w", "FDG", one) for one in (options, options, changed, changed, options)
    ]
    batch._load_converter.cache_clear()
    assert answers == [1, 1, 2, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("error", "stops"), [(CommitError("disk full"), True), (ValueError("odd"), False)])
def test_a_scan_that_fails_in_conversion_is_excluded(converted, study, model, tmp_path, monkeypatch, error, stops):
    """An output that cannot be written stops the conversion instead."""
    out = shutil.copytree(converted[0], tmp_path / "out")

    def fail(*_):
        raise error

    monkeypatch.setattr(convert.Converter, "_predict", fail)
    # The patch has no effect in worker processes.
    monkeypatch.setattr(
        batch, "run_in_workers", lambda function, tasks, *_: enumerate(function(*task) for task in tasks)
    )
    config = ConvertConfig(samples=5)
    with pytest.raises(CommitError) if stops else nullcontext():
        convert_inputs([study], model, out, config)
    if not stops:
        assert read_quarantine(out / "quarantine.tsv")[0].reason == "ValueError: odd"


@pytest.fixture
def convert_scan(tmp_path, monkeypatch):
    """Convert a scan with an earlier volume, whose preprocessing or conversion is a stand-in; return what is left."""
    layout, scan = Layout(tmp_path, "."), Scan("1")
    volume, manifest = layout.root / "volume", layout.manifest("convert/sub-1")
    row = pd.DataFrame([{"scan": scan.key, "source": "t1.nii", "target": ""}])
    study = StudyConfig(name="t", source="T1w", target="FDG")

    def run(prepare, convert_if_needed=None):
        commit_text(volume, "voxels")
        write_manifest(manifest, step="convert", outputs={"synth": volume}, inputs={}, config={})
        monkeypatch.setattr(batch, "prepare_scan", prepare)
        monkeypatch.setattr(scan_conversion, "load_pairs", lambda *_: SimpleNamespace(items=[{}]))
        monkeypatch.setattr(convert.Converter, "convert_if_needed", convert_if_needed)
        predictor = SimpleNamespace(card=SimpleNamespace(preprocess=PREPROCESS, side=SideEncoder()))
        rows = modality(study.source), modality(study.target)
        converter = convert.Converter(predictor, None, None, layout, *rows, CONFIG)
        result = batch._convert_scan(converter, row, tmp_path, study, 60.0)
        return result.reason, volume.exists(), manifest.exists()

    return run


@pytest.mark.parametrize("permanent", [True, False])
def test_a_scan_that_is_excluded_loses_its_volumes(convert_scan, tmp_path, permanent):
    """They are of other files or settings; if the reason may pass, the next attempt decides."""

    def prepare(layout, scan, *_):
        excluded = Quarantine(scan.key, "preprocess", "no brain")
        facts = {FACT: excluded.fact(), PERMANENT: permanent}
        write_manifest(layout.scan_manifest(scan), step="preprocess", outputs={}, inputs={}, config={}, facts=facts)
        return excluded

    assert convert_scan(prepare) == ("no brain", not permanent, not permanent)


def test_a_scan_without_a_result_here_is_no_success(tmp_path):
    """Workers of a cluster may have written it into a folder of their own."""
    rows = pd.DataFrame({"scan": ["sub-1", "sub-2", "sub-3"]})
    layout, scans = Layout(tmp_path, "."), SimpleNamespace(rows=rows)
    write_manifest(layout.manifest("convert/sub-1"), step="convert", outputs={}, inputs={}, config={})
    lost = list(batch._lost(scans, layout, [Quarantine("sub-2", "convert", "odd")]))
    assert [row.scan for row in lost] == ["sub-3"]
    assert "let the cluster's machines share it" in lost[0].reason


def test_a_scan_waits_for_another_command_that_converts_it(tmp_path, monkeypatch):
    """Each would remove the files of the other."""
    layout, done = Layout(tmp_path, "."), Event()
    converter = SimpleNamespace(predictor=SimpleNamespace(card=SimpleNamespace(preprocess=PREPROCESS)))
    monkeypatch.setattr(batch, "_load_converter", lambda *_: converter)
    monkeypatch.setattr(batch, "_state", lambda *_: SimpleNamespace(remember=lambda _: None))
    monkeypatch.setattr(batch, "_convert_scan", lambda *_: done.set())
    study, options = StudyConfig(name="t", source="T1w", target="FDG"), SimpleNamespace(deadline_s=1.0, origin=None)
    with ThreadPoolExecutor() as threads:
        with exclusive(layout.lock("convert/sub-1"), ""):
            waiting = threads.submit(
                batch._convert, pd.DataFrame([{"scan": "sub-1", "source": "x"}]), tmp_path, layout, study, options
            )
            rows = pd.DataFrame([{"scan": "sub-2", "source": "x"}])
            other = threads.submit(batch._convert, rows, tmp_path, layout, study, options)
            other.result(10)
            done.clear()
            assert not done.wait(0.2)
            assert not waiting.done()
        waiting.result(10)
    assert done.is_set()


def test_two_commands_with_images_of_one_label_keep_the_first(study, model, tmp_path):
    """Both looked at the empty folder before the other one wrote into it."""
    for person, label in (("a", "C0001"), ("b", "C0003")):
        (tmp_path / person).mkdir()
        shutil.copy(study / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", tmp_path / person / "t1.nii.gz")
    out, card = tmp_path / "out", load_card(model)
    first, second = (
        resolve_inputs([tmp_path / person / "t1.nii.gz"], card, out, model, tmp_path / "dicom") for person in ("a", "b")
    )
    assert batch.convert_study(first, model, out, CONFIG)["verdict"].tolist() != ["failed"]
    files = {file: file.read_bytes() for file in (out / "sub-t1").rglob("*") if file.is_file()}
    table = batch.convert_study(second, model, out, CONFIG)
    assert table["verdict"].tolist() == ["failed"]
    assert "holds sub-t1 of another image than t1.nii.gz" in table["reason"][0]
    assert {file: file.read_bytes() for file in (out / "sub-t1").rglob("*") if file.is_file()} == files


def test_a_conversion_that_fails_leaves_none_behind(convert_scan):
    """The earlier manifest would list volumes that are gone."""

    def fail(*_):
        raise ValueError("odd")

    assert convert_scan(lambda *_: None, fail) == ("ValueError: odd", False, False)


def test_files_are_selected_by_options(study, model, tmp_path, monkeypatch):
    """Entities, run and masks are passed to the study; an invalid selection is an error."""
    bids, masks, selections = tmp_path / "bids", tmp_path / "masks", []
    shutil.copytree(study / "sub-C0001", bids / "sub-C0001")
    shutil.copy(study / "dataset_description.json", bids)
    mask = masks / "sub-C0001/anat/sub-C0001_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.touch()
    whole = next((bids / "sub-C0001/anat").glob("*_T1w.nii.gz"))
    for middle in ("acq-thin_run-1", "acq-thin_run-2", "acq-thick_run-1"):
        shutil.copy(whole, whole.with_name(f"sub-C0001_{middle}_T1w.nii.gz"))
    whole.unlink()

    def outcomes(tasks, *_):
        selections.extend((row["source"].iloc[0], selected.masks) for row, _, _, selected, *_ in tasks)
        return [None] * len(tasks)

    def run(*options):
        command = ["convert", str(bids), "--model", str(model), "--out", str(tmp_path / "out"), *options]
        result = CliRunner().invoke(main, command)
        return result.exit_code, result.output + str(result.exception)

    monkeypatch.setattr(batch, "_results", outcomes)
    monkeypatch.setattr(batch, "_lost", lambda *_: [])
    code, message = run()
    assert (code != 0, "3 files fit T1w" in message) == (True, True), message
    assert run("--where", "T1w.acq=thin", "--runs", "last", "--masks", str(masks))[0] == 0
    assert selections == [("sub-C0001/anat/sub-C0001_acq-thin_run-2_T1w.nii.gz", masks)]
    for where, reason in [
        ("acq=thin", "of the form MODALITY.ENTITY=LABEL"),
        ("CT.acq=thin", "where names CT"),
        ("T1w.acq=thinner", "has acq-thinner"),
    ]:
        code, message = run("--where", where)
        assert (code != 0, reason in message) == (True, True), message


def test_a_missing_gpu_is_an_error_before_any_work(study, model, tmp_path):
    """The error names the option, and no folder is written."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = ["convert", str(study), "--model", str(model), "--out", str(tmp_path / "out"), "--device", "cuda"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == ConfigError.exit_code
    assert "--device = cuda" in done.output
    assert not (tmp_path / "out").exists()
