"""Preprocessing of the scans of a study: resuming, exclusion, crashes and reads; imaging is replaced by stubs."""

import errno
import gzip
import io
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from dualflow.commands.make_index import make_index
from dualflow.commands.preprocess import preprocess
from dualflow.commit import commit_bytes, commit_text, committing
from dualflow.config import Config, PreprocessConfig, StudyConfig, parse_config
from dualflow.data import raw_scans
from dualflow.data.index import read_pairs
from dualflow.data.preprocessing_files import preprocessing_files
from dualflow.data.quarantine import Quarantine
from dualflow.data.raw_scans import is_excluded_for_good, prepare_scan, prepare_scans
from dualflow.data.scan_digests import read_digests
from dualflow.data.scan_files import ScanFiles, input_digests
from dualflow.digests import sha256
from dualflow.errors import CommitError, DataError
from dualflow.imaging import outputs, pipeline
from dualflow.imaging.geometry import centred_affine
from dualflow.imaging.mask_qc import MaskShape, TemplateAgreement
from dualflow.imaging.registration import Alignment
from dualflow.imaging.stopwatch import Stopwatch
from dualflow.imaging.volume import write_volume
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest, verify_manifests
from dualflow.modalities import modality
from dualflow.temporaries import TEMP_PREFIX

STUDY, PREPROCESS = StudyConfig(name="t"), PreprocessConfig()
PAIR = SimpleNamespace(record={"quality": {"overlap": 1.0}}, clock=Stopwatch())


def write_image(path: Path, seed: int = 0) -> None:
    """Write a tiny volume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).integers(0, 99, (4, 4, 4), np.int16), np.eye(4)), path)


def volume_path(layout: Layout, scan: Scan) -> Path:
    return layout.derivatives / scan.folder / "anat" / "volume.txt"


@pytest.fixture
def files(tmp_path) -> ScanFiles:
    """The raw files of a scan in a BIDS dataset, with a sidecar of the target and an inherited one."""
    root = tmp_path / "bids"
    names = {"source": "anat/sub-1_T1w.nii", "target": "pet/sub-1_pet.nii", "FLAIR": "anat/sub-1_FLAIR.nii"}
    paths = {role: root / "sub-1" / name for role, name in names.items()}
    for seed, path in enumerate(paths.values()):
        write_image(path, seed)
    commit_text(root / "dataset_description.json", "{}")
    commit_text(paths["target"].with_suffix(".json"), '{"Units": "Bq/mL"}')
    commit_text(root / "T1w.json", '{"MagneticFieldStrength": 3}')
    return ScanFiles(paths["source"], paths["target"], {"FLAIR": paths["FLAIR"]})


@pytest.fixture
def attempts(monkeypatch):
    """Names of the preprocessed sources; preprocessing raises `attempts.error`, and writes `attempts.target` too."""
    log = SimpleNamespace(sources=[], error=None, target=None)

    def preprocess_pair(source, *_, **__):
        log.sources.append(source.path.name)
        if log.error:
            raise log.error
        return PAIR

    def write_pair(_, layout, scan, *__):
        written = {"source": volume_path(layout, scan)} | ({"target": log.target} if log.target else {})
        for path in written.values():
            commit_text(path, "voxels")
        return written

    monkeypatch.setattr(pipeline, "preprocess_pair", preprocess_pair)
    monkeypatch.setattr(outputs, "write_pair", write_pair)
    return log


def test_a_scan_is_preprocessed_again_only_if_an_input_changed(files, attempts, tmp_path):
    """Inputs are images, sidecars, region masks, outputs and settings, but not the number of workers or shards."""
    layout, scan, config = Layout(tmp_path / "out"), Scan("1"), PREPROCESS
    root, region = files.source.parents[2], tmp_path / "region.nii"
    write_image(region)

    def runs(**changed):
        before = len(attempts.sources)
        assert prepare_scan(layout, scan, files, STUDY, config.model_copy(update=changed)) is None
        assert read_manifest(layout.scan_manifest(scan))["facts"]["quality"] == PAIR.record["quality"]
        return len(attempts.sources) > before

    assert runs()
    assert not runs()
    assert not runs(workers=5, shards=7, deadline_s=9.0)
    for name in ("sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_FLAIR.nii", "sub-1/pet/sub-1_pet.nii"):
        write_image(root / name, 7)
        assert runs(), name
    for name in ("sub-1/pet/sub-1_pet.json", "T1w.json", "sub-1/sub-1_FLAIR.json"):
        commit_text(root / name, '{"EchoTime": 1}')
        assert runs(), name
    volume_path(layout, scan).write_text("half")
    assert runs()
    config = PREPROCESS.model_copy(update={"reference_region": str(region)})
    assert runs()
    write_image(region, 1)
    assert runs()
    assert not runs()


@pytest.mark.parametrize(("error", "recorded"), [(DataError("it is bad"), True), (ValueError("odd"), False)])
def test_an_excluded_scan_is_tried_again_if_its_files_change(files, attempts, tmp_path, error, recorded):
    """A known reason is recorded; an unexpected error is tried again in every run."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")
    attempts.error = error
    reason = "it is bad" if recorded else "sub-1_T1w.nii: ValueError: odd"
    for _ in range(2):
        assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) == Quarantine("sub-1", "preprocess", reason)
    assert len(attempts.sources) == (1 if recorded else 2)
    attempts.error = None
    write_image(files.source, 7)
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is None


@pytest.mark.parametrize(("role", "usable"), [("target", True), ("source", False), ("FLAIR", False)])
def test_only_a_pet_may_have_nan(files, attempts, tmp_path, role, usable):
    """There it is outside the field of view; in an MR it is a defect."""
    array = np.random.default_rng(0).random((4, 4, 4), np.float32)
    array[0] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), files.paths[role])
    quarantine = prepare_scan(Layout(tmp_path / "out"), Scan("1"), files, STUDY, PREPROCESS)
    assert attempts.sources == ([files.source.name] if usable else [])
    assert quarantine is None if usable else "NaN" in quarantine.reason


@pytest.mark.parametrize("error", [DataError("it is bad"), ValueError("odd")])
def test_an_excluded_scan_loses_its_earlier_volumes(files, attempts, tmp_path, error):
    """No manifest lists them any more, so they would stay beside its row in the quarantine table."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is None
    assert volume_path(layout, scan).is_file()
    attempts.error = error
    write_image(files.source, 7)
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is not None
    assert not volume_path(layout, scan).exists()


def test_a_scan_that_fails_while_it_is_written_leaves_no_volume(files, attempts, monkeypatch, tmp_path):
    """Such as by its picture, the last file: volumes of an excluded scan would look like usable ones."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")

    def write_pair(_, layout, scan, *__):
        for path in preprocessing_files(layout, scan, STUDY)[:-1]:
            commit_bytes(path, gzip.compress(b"voxels") if path.suffix == ".gz" else b"{}")
        raise ValueError("odd")

    monkeypatch.setattr(outputs, "write_pair", write_pair)
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS).reason == "sub-1_T1w.nii: ValueError: odd"
    assert [path.name for path in layout.root.rglob("*") if path.is_file()] == ["sub-1.json"]


def test_a_target_that_is_excluded_later_loses_its_volume(files, attempts, tmp_path):
    """No manifest lists it any more, but it would look like a measured target."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")
    attempts.target = volume_path(layout, scan).with_name("target.txt")
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is None
    unlisted = layout.on_grid(scan, modality("FDG"))  # its manifest was lost
    unlisted.parent.mkdir(parents=True, exist_ok=True)
    unlisted.touch()
    target, attempts.target = attempts.target, None
    assert target.is_file()
    assert prepare_scan(layout, scan, ScanFiles(files.source, None, files.extra), STUDY, PREPROCESS) is None
    assert not target.exists()
    assert not unlisted.exists()
    assert volume_path(layout, scan).is_file()


def test_the_folder_of_the_reference_mask_is_not_recorded(files, attempts, tmp_path):
    """Its name may identify a person."""
    region = tmp_path / "jane_doe" / "region.nii"
    write_image(region)
    attempts.error = DataError(f"{region}: it is bad")
    config = PREPROCESS.model_copy(update={"reference_region": str(region)})
    refused = prepare_scan(Layout(tmp_path / "out"), Scan("1"), files, STUDY, config)
    assert refused.reason == "region.nii: it is bad"


@pytest.mark.parametrize(("cause", "for_good"), [(None, True), (OSError(5, "Input/output error"), False)])
def test_an_exclusion_is_for_good_unless_the_system_failed(files, attempts, tmp_path, cause, for_good):
    """A disk that is away may come back; a usable scan is not excluded."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")
    attempts.error = DataError("it is bad")
    attempts.error.__cause__ = cause
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is not None
    assert is_excluded_for_good(layout, scan) is for_good
    attempts.error = None
    write_image(files.source, 7)
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is None
    assert not is_excluded_for_good(layout, scan)


def test_a_scan_is_tried_again_after_a_system_error(files, attempts, tmp_path):
    """Its files are unchanged, and the next run reads them once the disk is back."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")
    attempts.error = DataError("sub-1_T1w.nii: cannot be read (Stale file handle)")
    attempts.error.__cause__ = OSError(errno.ESTALE, "Stale file handle")
    for _ in range(2):
        assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is not None
    assert len(attempts.sources) == 2
    assert verify_manifests(layout.scan_manifest(scan).parent, retry=True) == [scan.key]
    attempts.error = None
    assert prepare_scan(layout, scan, files, STUDY, PREPROCESS) is None


def test_a_scan_with_unreadable_files_is_excluded(files, attempts, tmp_path):
    """A file is missing or a sidecar is no JSON, so preprocessing does not start."""
    for path, text in ((files.target.with_suffix(".json"), "{"), (files.source, None)):
        path.unlink() if text is None else path.write_text(text)
        assert path.name in prepare_scan(Layout(tmp_path / "out"), Scan("1"), files, STUDY, PREPROCESS).reason
        path.with_suffix(".json").unlink(missing_ok=True)
    assert attempts.sources == []


def test_an_output_that_cannot_be_written_stops_the_step(files, attempts, tmp_path):
    """The scan is not excluded."""
    layout, scan = Layout(tmp_path / "out"), Scan("1")
    commit_text(layout.derivatives / "sub-1", "a file in place of the folder")
    with pytest.raises(CommitError):
        prepare_scan(layout, scan, files, STUDY, PREPROCESS)
    assert not layout.scan_manifest(scan).exists()


def abort_at_scan_2(layout: Layout, scan: Scan, *_: object) -> None:
    """Replace `prepare_scan`: the process aborts while it writes scan 2."""
    if scan.subject == "2":
        with committing(volume_path(layout, scan)) as temp:
            temp.write_text("half")
            os.abort()


@pytest.mark.slow
def test_a_scan_that_crashes_its_worker_is_excluded(files, attempts, monkeypatch, tmp_path):
    """Other scans continue, no partial output remains, and the next run tries the scan again."""
    layout = Layout(tmp_path / "out")
    tasks = [(layout, Scan(label), files, STUDY, PREPROCESS) for label in ("1", "2", "3")]
    with monkeypatch.context() as patch:
        patch.setattr(raw_scans, "prepare_scan", abort_at_scan_2)
        outcomes = list(prepare_scans(tasks))
    [refused] = [outcome for outcome in outcomes if outcome]
    assert outcomes.count(None) == 2
    assert (refused.scan, refused.step) == ("sub-2", "preprocess")
    assert refused.reason.startswith("sub-1_T1w.nii: its worker process was ended twice by SIGABRT, ")
    assert Quarantine.of_manifest("sub-2", read_manifest(layout.scan_manifest(Scan("2")))) == refused
    assert not list(layout.derivatives.rglob("*.txt"))
    assert prepare_scan(*tasks[1]) is None
    assert len(attempts.sources) == 1


def hang_at_scan_2(layout: Layout, scan: Scan, *_: object) -> None:
    """Replace `prepare_scan`: a reader hangs at scan 2, while a file is half written."""
    if scan.subject == "2":
        with committing(volume_path(layout, scan)) as temp:
            temp.write_text("half")
            threading.Event().wait(600)


@pytest.mark.slow
def test_a_scan_that_takes_too_long_is_excluded(files, attempts, monkeypatch, tmp_path):
    """The reason names the setting, other scans continue, and the next run tries the scan again."""
    layout, deadlines = Layout(tmp_path / "out"), {"1": 600.0, "2": 1.0, "3": 600.0}
    tasks = [
        (layout, Scan(label), files, STUDY, PREPROCESS.model_copy(update={"deadline_s": seconds}))
        for label, seconds in deadlines.items()
    ]
    with monkeypatch.context() as patch:
        patch.setattr(raw_scans, "prepare_scan", hang_at_scan_2)
        outcomes = list(prepare_scans(tasks))
    [late] = [outcome for outcome in outcomes if outcome]
    assert outcomes.count(None) == 2
    assert late.scan == "sub-2"
    assert "took longer than its deadline (preprocess.deadline_s" in late.reason
    assert Quarantine.of_manifest("sub-2", read_manifest(layout.scan_manifest(Scan("2")))) == late
    assert not list(layout.derivatives.rglob("*.txt"))
    assert prepare_scan(*tasks[1]) is None


def study_of(folder: Path) -> Config:
    study = {"name": "t", "bids": str(folder / "bids"), "results": str(folder / "results")}
    return parse_config({"study": study, "preprocess": {"shards": 1}, "split": {"validation": 0, "test": 0}})


def hanging_scan(layout: Layout, scan: Scan, *arguments: object) -> Quarantine | None:
    """Replace `prepare_scan`: it writes without imaging, and hangs in scan 2 if the file `hang` exists."""

    def write_pair(_, layout: Layout, scan: Scan, *__: object) -> dict[str, Path]:
        first, second = volume_path(layout, scan), volume_path(layout, scan).with_name("second.txt")
        commit_text(first, scan.key)
        with committing(second) as temp:
            temp.write_text("half")
            if scan.subject == "2" and (layout.root.parents[1] / "hang").exists():
                print("hangs", flush=True)
                threading.Event().wait(600)
            temp.write_text("whole")
        return {"first": first, "second": second}

    pipeline.preprocess_pair, outputs.write_pair = lambda *_, **__: PAIR, write_pair
    return prepare_scan(layout, scan, *arguments)


@pytest.mark.slow
def test_a_killed_step_resumes(make_bids, pair_files, tmp_path, monkeypatch):
    """After SIGKILL during a scan, finished scans are kept and the partial one is repeated."""
    root = make_bids(pair_files("1") + pair_files("2") + pair_files("3"), name="bids")
    for seed, file in enumerate(root.rglob("*.nii.gz")):
        write_image(file, seed)
    config = study_of(tmp_path)
    layout = config.layout
    make_index(config)
    (tmp_path / "hang").touch()
    code = (
        "import sys, test_raw_scans as t; from pathlib import Path; t.raw_scans.prepare_scan = t.hanging_scan; "
        "t.preprocess(t.study_of(Path(sys.argv[1])), 0)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout.readline() == "hangs\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=600)
    (tmp_path / "hang").unlink()

    done = [read_manifest(layout.scan_manifest(Scan(label))) for label in "123"]
    assert [manifest is not None for manifest in done] == [True, False, False]
    assert len(list(layout.derivatives.rglob(f"{TEMP_PREFIX}*"))) == 1
    before = {file: file.stat().st_mtime_ns for file in layout.derivatives.glob("sub-1/anat/*")}

    monkeypatch.setattr(raw_scans, "prepare_scan", hanging_scan)
    preprocess(config, 0)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    files = layout.derivatives.rglob("*.*")
    texts = {str(file.relative_to(layout.derivatives)): file.read_text() for file in files}
    assert texts == {f"sub-{label}/anat/volume.txt": f"sub-{label}" for label in "123"} | {
        f"sub-{label}/anat/second.txt": "whole" for label in "123"
    }
    assert read_manifest(layout.manifest("preprocess/shard-0")) is not None


def test_the_mask_is_an_input_of_its_scan(tmp_path):
    """Adding a mask or changing its content changes the input digests."""
    source, mask = tmp_path / "t1.nii", tmp_path / "m.nii"
    write_image(source)
    write_image(mask, 1)
    without, first = (input_digests(files.open()) for files in (ScanFiles(source), ScanFiles(source, mask=mask)))
    write_image(mask, 2)
    second = input_digests(ScanFiles(source, mask=mask).open())
    assert len({tuple(sorted(inputs.items())) for inputs in (without, first, second)}) == 3
    assert mask.name not in str(first)


class CountedFile(io.FileIO):
    """A file that counts the bytes read from it."""

    count = 0

    def readinto(self, buffer) -> int:
        size = super().readinto(buffer)
        self.count += size
        return size

    def readall(self) -> bytes:
        data = super().readall()
        self.count += len(data)
        return data

    def read(self, size: int = -1) -> bytes:
        return self.readall() if size < 0 else super().read(size)


@pytest.fixture
def passes(monkeypatch):
    """Return the number of complete reads of each raw image since the last call."""
    files: list[CountedFile] = []
    plain_open = io.open

    def counted_open(file, mode="r", *args, **kwargs):
        if mode not in ("rb", "r", "br") or not str(file).endswith((".nii", ".nii.gz")) or "bids" not in str(file):
            return plain_open(file, mode, *args, **kwargs)
        files.append(CountedFile(file))
        return io.BufferedReader(files[-1])

    monkeypatch.setattr("io.open", counted_open)
    monkeypatch.setattr("builtins.open", counted_open)

    def passes() -> Counter[str]:
        counts = Counter(Path(file.name).name for file in files if file.count > Path(file.name).stat().st_size / 2)
        files.clear()
        return counts

    return passes


@pytest.fixture
def heads(make_bids, pair_files, tmp_path, monkeypatch):
    """Configuration of a study of two noise heads, with stubs for brain masks and registration."""
    root = make_bids(pair_files("1") + pair_files("2"), name="bids")
    for seed, file in enumerate(root.rglob("*.nii.gz")):
        affine = centred_affine(np.array([0.0, -18.0, 5.0]), 6.0, (32, 38, 32))
        array = np.random.default_rng(seed).random((32, 38, 32), np.float32)
        write_volume(file, array, affine, sidecar={"Units": "Bq/mL"})
    monkeypatch.setattr(pipeline, "brain_mask", lambda scan: (np.ones(scan.array.shape, bool), MaskShape(1, 1)))
    monkeypatch.setattr(pipeline, "compare_with_template", lambda *_: TemplateAgreement(0, 0, 1, 1))
    for name in ("register_affine", "register_rigid"):
        monkeypatch.setattr(pipeline, name, lambda *_: Alignment(np.eye(4), 1.0, 0.0, 1.0))
    return study_of(tmp_path)


@pytest.mark.slow
def test_a_raw_file_is_read_twice(heads, passes):
    """The index verifies it, and preprocessing loads it; a second run reads nothing."""
    options = {"spacing_mm": 8, "shape": (24, 28, 24), "bias_field": False}
    layout, config = heads.layout, heads.preprocess.model_copy(update=options)
    names = {file.name for file in heads.bids.rglob("*.nii.gz")}
    make_index(heads)
    assert passes() == dict.fromkeys(names, 1)
    digests = read_digests(layout.digests)
    rows = read_pairs(layout).to_dict("records")

    def prepare(layout, digests):
        for row in rows:
            files = ScanFiles.of_row(heads.bids, row, heads.study, digests)
            assert prepare_scan(layout, Scan.parse(row["scan"]), files, heads.study, config) is None
        return passes()

    assert prepare(layout, digests) == dict.fromkeys(names, 1)
    assert prepare(layout, digests) == {}
    # A batch conversion has no index, so it verifies and loads.
    converted = Layout(layout.root / "converted", ".")
    assert prepare(converted, None) == dict.fromkeys(names, 2)
    manifests = [read_manifest(folder.scan_manifest(Scan("1"))) for folder in (layout, converted)]
    assert manifests[0]["inputs"] == manifests[1]["inputs"]
    assert manifests[0]["inputs"]["source"] == sha256(heads.bids / rows[0]["source"])
    # A file that was replaced since the index is verified again.
    first = heads.bids / rows[0]["source"]
    first.write_bytes((heads.bids / rows[1]["source"]).read_bytes())
    passes()
    assert prepare(layout, digests)[first.name] == 2
