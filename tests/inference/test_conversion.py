"""Conversions from the command line and from Python, from their inputs to their outputs."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

import dualflow
from dualflow.cli import main
from dualflow.cohort import participants, write_subject
from dualflow.commands import convert as commands
from dualflow.config import PreprocessConfig
from dualflow.data.quarantine import read_quarantine
from dualflow.inference import conversion
from dualflow.inference.conversion_table import conversion_table
from dualflow.layout import Layout
from dualflow.revisions import REVISIONS

PREPROCESS = PreprocessConfig(spacing_mm=8.0, shape=(24, 32, 24), bias_field=False)


@pytest.fixture
def model(tmp_path, save_flow, small_flow, card):
    """Folder of an untrained flow for a coarse grid; its side information is the age."""
    coarse = card.model_copy(update={"shape": PREPROCESS.shape, "preprocess": PREPROCESS})
    return save_flow(tmp_path / "model", small_flow, coarse)


@pytest.fixture
def convert(tmp_path, model, monkeypatch):
    """Run the command in `tmp_path`, which holds three tiny images in a BIDS dataset and one beside it."""
    for name in ("1", "2", "3"):
        path = tmp_path / f"bids/sub-{name}/anat/sub-{name}_T1w.nii"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.arange(64, dtype="i2").reshape(4, 4, 4), np.eye(4)), path)
    (tmp_path / "bids/dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    (tmp_path / "bids/participants.tsv").write_text("participant_id\tage\nsub-1\t71\nsub-2\tn/a\nsub-9\t70\n")
    nib.save(nib.load(path), tmp_path / "t1.nii.gz")
    monkeypatch.chdir(tmp_path)
    # Set to one thread by the command; monkeypatch restores it.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")
    return lambda *words: CliRunner().invoke(main, ["convert", *words, "--model", str(model)])


def converted(monkeypatch):
    """Replace the conversion itself; return the list of the rows that it gets."""
    rows = []

    def convert_study(scans, *_, **__):
        rows.extend(scans.rows.to_dict("records"))
        return conversion_table(Layout(Path("out"), "."), [], [])

    monkeypatch.setattr(conversion, "convert_study", convert_study)
    return rows


def test_side_information_of_an_image_is_an_option(convert, monkeypatch):
    """The row of the image has it."""
    rows = converted(monkeypatch)
    done = convert("t1.nii.gz", "--out", "out", "--age", "71")
    assert done.exit_code == 0, done.output
    assert [(row["scan"], row["source"], row["age"]) for row in rows] == [("sub-t1", "t1.nii.gz", 71.0)]
    assert "unknown" not in done.stderr


@pytest.mark.parametrize(("revision", "shown"), [(1, "1"), (None, "unknown")])
def test_a_model_of_another_preprocessing_is_mentioned(convert, model, monkeypatch, revision, shown):
    """Its scans were prepared in another way than those to convert; the note says which dualflow fits."""
    converted(monkeypatch)
    path = model / "model.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"preprocess_revision": revision, "commit": "4c342bf6" * 5}))
    monkeypatch.setitem(REVISIONS, "preprocess", 2)
    done = convert("t1.nii.gz", "--out", "out", "--age", "71")
    assert done.exit_code == 0, done.output
    assert f"revision {shown} of the preprocessing prepared the scans that the model learnt from, rev" in done.stderr
    assert f"convert with its own dualflow {card['dualflow']}, commit 4c342bf64c34" in done.stderr


def test_labels_and_unknown_values_of_a_dataset(convert, monkeypatch):
    """Several labels follow one option; unknown values and people without a row are mentioned."""
    rows = converted(monkeypatch)
    done = convert("bids", "--out", "bids/derivatives/dualflow", "--participant-label", "sub-2", "3")
    assert done.exit_code == 0, done.output
    assert [row["scan"] for row in rows] == ["sub-2", "sub-3"]
    assert done.stderr.splitlines() == [
        "subjects with a T1w scan but not in participants.tsv: 1 (3)",
        "side information unknown: age (2 of 2 scans)",
    ]


def test_a_dry_run_writes_nothing(convert, tmp_path):
    """It lists files, side information and status of each scan."""
    before = sorted(tmp_path.rglob("*"))
    done = convert("bids", "--out", "out", "--dry-run")
    assert done.stdout.splitlines() == [
        "new      sub-1: sub-1/anat/sub-1_T1w.nii, age=71",
        "new      sub-2: sub-2/anat/sub-2_T1w.nii, age=n/a",
        "new      sub-3: sub-3/anat/sub-3_T1w.nii, age=n/a",
        "dry run: 3 new, 0 done, 0 excluded; nothing was written",
    ]
    assert "subjects in participants.tsv without a T1w scan: 1 (9)" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["bids", "--out", "bids"], 2, "output bids is the input itself"),
        (["bids/sub-1/anat/sub-1_T1w.nii", "--out", "bids"], 2, "lies inside the output bids"),
        (["t1.nii.gz", "--out", "out", "--aeg", "71"], 2, "did you mean age"),
        (["t1.nii.gz", "--out", "out", "--worker", "2"], 2, "did you mean workers"),
        (["t1.nii.gz", "--out", "out", "--age", "old"], 2, "--age is 'old'"),
        (["bids", "--out", "out", "--age", "71"], 2, "--age is for single images"),
        (["bids", "--out", "out", "--participant-label", "7"], 2, "choose from: 1, 2, 3"),
    ],
)
def test_errors_come_before_any_work(convert, tmp_path, words, code, message):
    """The error is one line, and no file changes."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = convert(*words)
    assert (done.exit_code, len(done.stderr.splitlines())) == (code, 1), done.output
    assert message in done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_reasons_are_written_if_no_scan_is_usable(convert, tmp_path):
    """The output holds the tables with the excluded scans, and no dataset."""
    for name in ("1", "2", "3"):
        (tmp_path / f"bids/sub-{name}/anat/sub-{name}_run-2_T1w.nii").touch()
    done = convert("bids", "--out", "out")
    assert done.exit_code == 3, done.output
    assert "no usable T1w scan, 3 scans were excluded" in done.stderr
    assert [row.scan for row in read_quarantine(tmp_path / "out/quarantine.tsv")] == ["sub-1", "sub-2", "sub-3"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"conversion.tsv", "locks", "quarantine.tsv"}


@pytest.mark.slow
def test_three_lines_of_python_convert_an_image(model, tmp_path):
    """Worker processes do not run the script again, and the name of the folder reaches no text of the output."""
    folder = tmp_path / "Smith^John ü"
    write_subject(tmp_path / "bids", participants(1, 0)[0])
    folder.mkdir()
    next(tmp_path.glob("bids/sub-*/anat/*_T1w.nii.gz")).rename(folder / "t1.nii.gz")
    (folder / "t2.nii.gz").write_bytes((folder / "t1.nii.gz").read_bytes()[:9000])
    script = tmp_path / "script.py"
    images = ["Smith^John ü/t1.nii.gz", "Smith^John ü/t2.nii.gz"]
    call = f'dualflow.convert({images!r}, model={str(model)!r}, out="out", samples=2, age=71, device="cpu")'
    script.write_text(f"import dualflow\nresult = {call}\nprint(dict(zip(result['scan'], result['converted'])))\n")
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'sub-t2': False, 'sub-t1': True}\n"
    sidecar = json.loads(next((tmp_path / "out").glob("sub-t1/pet/*desc-synth_pet.json")).read_text())
    assert sidecar["SideInformation"] == {"age": 71.0}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {".gz", ".json", ".tsv", ".html", ".files", ".jpg", ""} <= {path.suffix for path in files}
    contents = {
        path: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files
    }
    assert not [path for path, content in contents.items() if b"Smith" in content]


def test_python_takes_names_of_columns_as_arguments(model, tmp_path, monkeypatch):
    """One input may be a path; columns that clash with an argument are given by `side`."""
    calls = []
    monkeypatch.setattr(commands, "convert", lambda *arguments, **_: calls.append(arguments))
    dualflow.convert(tmp_path / "a.nii", model=model, out="out", participants="01", side={"seed": 1}, age=71, seed=3)
    [(inputs, _, _, config, selection, *_)] = calls
    assert (inputs, config.seed) == ([tmp_path / "a.nii"], 3)
    assert (selection.participants, selection.side) == (["01"], {"seed": 1, "age": 71})
