"""Broken input is refused with a specific reason, fast and in little memory, and the valid scans go on.

The broken files and studies are in `bad_files.py` and `bad_studies.py`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bad_studies
import numpy as np
import pytest
import yaml
from bad_bytes import AFFINE, GOOD, GOOD_TWO, IMAGE, PACKED, TWO, flips, nifti, put
from bad_files import CLAIMS, CONTAINERS, DEFECTS, PLACES, SIDECARS, SOUND, STREAMS, VOXELS, write_corpus
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.cohort import participants, write_subject
from dualflow.commands.preprocess import finish_preprocess, preprocess
from dualflow.config import load_config
from dualflow.data.index import pair_scans, read_pairs
from dualflow.data.quarantine import read_quarantine
from dualflow.errors import CommitError, ConfigError, DataError, printable
from dualflow.imaging.volume import read_volume, write_volume
from dualflow.layout import Layout, Scan
from dualflow.modalities import MODALITIES

MAX_MIB, MAX_S = 512, 2.0
STAGED = [*CONTAINERS, *STREAMS, *CLAIMS, *PLACES, *VOXELS]


@dataclass(frozen=True)
class Refusal:
    """Refusal of one file: its defect and path, the error's type and message, and CPU seconds."""

    name: str
    path: str
    error: str
    reason: str
    seconds: float


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Refusals and peak memory, from a process with a memory limit."""
    script = Path(__file__).parents[1] / "support" / "refuse_all.py"
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("corpus"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def refusals(report):
    return [Refusal(**fields) for fields in report["refusals"]]


def bare(refusal):
    """The reason without the path of the image or of its sidecar."""
    return refusal.reason.removeprefix(printable(named(refusal))).partition(": ")[2]


def named(refusal):
    """Path of the file without its suffixes."""
    return refusal.path.removesuffix(".gz").removesuffix(".nii")


def test_the_corpus_is_large_enough(refusals):
    """The corpus has at least 60 defects and 300 files, studies not counted."""
    assert len({refusal.name for refusal in refusals}) >= 60
    assert len({refusal.path for refusal in refusals}) >= 300


def test_every_file_is_refused_for_its_own_reason(refusals):
    """The error has the type of the defect; its message starts with the file and ends with a remedy, in one line."""
    expected = {defect.name: defect for defect in [*DEFECTS, *SIDECARS]}
    for refusal in refusals:
        defect = expected[refusal.name]
        assert refusal.error == defect.error.__name__, refusal
        assert re.search(defect.words, bare(refusal)), refusal
        assert refusal.reason.startswith(printable(named(refusal))), refusal
        assert refusal.reason.isprintable()
        assert re.search(r"[;:] \w+ [^;:]+$", bare(refusal)), refusal


def test_no_two_defects_share_a_reason(refusals):
    """A reader of quarantine.tsv can tell the defects apart."""
    defects = defaultdict(set)
    for refusal in refusals:
        defects[bare(refusal)].add(refusal.name)
    assert {reason: names for reason, names in defects.items() if len(names) > 1} == {}


def test_refusing_is_cheap(report, refusals):
    """Each file takes less than 2 s; the process stays below 512 MiB, unused allocations included."""
    slowest = max(refusals, key=lambda refusal: refusal.seconds)
    assert slowest.seconds < MAX_S, slowest
    assert report["peak_mib"] < MAX_MIB


@pytest.mark.parametrize("name", SOUND)
def test_an_unusual_but_valid_image_is_read(tmp_path, name):
    """The standard allows these headers and names, so the image is read unchanged."""
    (tmp_path / name).write_bytes(SOUND[name])
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, IMAGE)
    np.testing.assert_array_equal(volume.affine, AFFINE)


BASES = (
    GOOD,
    GOOD_TWO,
    PACKED,
    nifti(order=">"),
    nifti(kind=TWO, order=">"),
    nifti(IMAGE.astype(np.int16), scl_slope=2, scl_inter=3),
    nifti(qform_code=0),
    nifti(sform_code=0),
)
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80")


@pytest.mark.parametrize("base", range(len(BASES)))
def test_random_damage_is_read_or_refused(tmp_path, base):
    """Random damage, most of it in the header, gives a finite image or an error in one line."""
    rng = np.random.default_rng(base)
    path = tmp_path / "damaged.nii"
    for _ in range(100):
        data = BASES[base]
        for _ in range(rng.integers(1, 5)):
            offset = int(rng.integers(352 if rng.random() < 0.8 else len(data)))
            run = int(rng.integers(1, 9))
            data = (
                flips(data, [offset], bits=1 << int(rng.integers(8)))[0],
                put(data, offset, rng.bytes(run)),
                put(data, offset, EXTREMES[rng.integers(4)] * run),
            )[rng.integers(3)]
        path.write_bytes(data)
        reason, volume = refused(path)
        if volume is None:
            assert reason.startswith(f"{path}: ")
            assert reason.isprintable()
        else:
            assert np.isfinite(volume.array).all()
            assert np.isfinite(volume.affine).all()


def refused(path):
    """The reason why an image is refused, or the image; errors other than DataError propagate."""
    try:
        return None, read_volume(path)
    except DataError as error:
        return str(error), None


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "1")  # the commands set them; monkeypatch restores them


@pytest.fixture
def study(tmp_path):
    """A valid study."""
    bad_studies.write_study(tmp_path / "study")
    return tmp_path / "study"


def configured(folder, **study):
    """Write a configuration with its results in `folder`; return its path."""
    path = folder.with_name(f"{folder.name}.yaml")
    settings = {
        "study": {"name": "s", "results": str(folder)} | study,
        "split": {"validation": 0, "test": 0},
        "preprocess": {"spacing_mm": 8, "shape": [24, 32, 24], "bias_field": False, "shards": 1},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def invoke(command, config):
    """Run a command; return its exit code and the error lines."""
    done = CliRunner().invoke(main, [command, "--config", str(config)])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, [line for line in done.stderr.splitlines() if line.startswith("dualflow: ")]


def test_bad_subjects_are_excluded_and_the_others_form_pairs(study, tmp_path):
    """Each broken subject of a study has a row with its reason in the quarantine, and each valid one a pair."""
    for subject in [*bad_studies.SUBJECTS, *bad_studies.UNUSED_TARGETS]:
        subject.make(study, subject.label)
    for label in ("ok1", "ok2"):
        bad_studies.add(study, label, bad_studies.SOUND_NAMES[int(label[-1])], bad_studies.FDG)
    bad_studies.add(study, "NoMr", bad_studies.FDG)  # a PET alone is usual, and no broken scan
    bad_studies.add_row(study, "\x1b[2Jgone", "70")  # an escape sequence that clears a terminal
    config = configured(tmp_path / "out", bids=str(study), side=["age"])
    assert invoke("index", config) == (0, [])
    layout = load_config(config).layout
    summary = layout.study_summary.read_text()
    assert "\\x1b[2Jgone" in summary
    assert "scans with FDG but no T1w: 2 (sub-NoMr, " in summary
    expected = {subject.scan: subject.words for subject in bad_studies.SUBJECTS} | bad_studies.ALSO_REFUSED
    rows = read_quarantine(layout.index_quarantine)
    assert sorted(row.scan for row in rows) == sorted(expected)
    for row in rows:
        assert re.search(expected[row.scan], row.reason), row
        assert row.reason.isprintable()
    assert len({row.reason for row in rows}) == len(rows)
    pairs = read_pairs(layout)
    assert {"sub-good2", "sub-good3", "sub-ok1", "sub-ok2"} <= set(pairs["scan"][pairs["target"] != ""])
    assert not set(pairs["scan"]) & set(expected)
    for subject in bad_studies.UNUSED_TARGETS:
        assert pairs["target"][pairs["scan"] == subject.scan].tolist() == [""]
        assert re.search(f"{subject.scan}: .*{subject.words}", summary)


@pytest.mark.parametrize("name", bad_studies.STUDIES)
def test_an_unusable_study_ends_with_its_reason(study, tmp_path, name):
    """The index fails with one line and an exit code, and writes no pairs."""
    words, make = bad_studies.STUDIES[name]
    make(study)
    config = configured(tmp_path / "out", bids=str(study), side=["age"])
    code, errors = invoke("index", config)
    expected = ConfigError if name in bad_studies.REFUSED_WITH_THE_CONFIGURATION else DataError
    assert code == expected.exit_code
    assert len(errors) == 1
    assert re.search(words, errors[0])
    assert str(study) in errors[0]
    assert not Layout(tmp_path / "out" / "s").pairs.exists()


@pytest.mark.parametrize("name", bad_studies.TABLES)
def test_an_unusable_table_ends_with_its_reason(study, tmp_path, name):
    """The index fails in the same way for a table of samples."""
    words, content = bad_studies.TABLES[name]
    table = study / "samples.tsv"
    table.write_bytes(content)
    code, errors = invoke("index", configured(tmp_path / "out", samples=str(table)))
    assert code == DataError.exit_code
    assert len(errors) == 1
    assert re.search(words, errors[0])
    assert str(study) in errors[0]


@contextmanager
def full_disk():
    """Limit the size of files to a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_nothing(study, tmp_path):
    """The index ends with the exit code of a failed write, leaves no file, and succeeds once there is space."""
    config = configured(tmp_path / "out", bids=str(study))
    with full_disk():
        code, errors = invoke("index", config)
    assert code == CommitError.exit_code
    assert len(errors) == 1
    assert re.search("cannot be written .*; free space", errors[0])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert invoke("index", config) == (0, [])


@pytest.mark.parametrize("results", ["file", "/proc/dualflow", "locked"])
def test_an_output_that_cannot_be_written_is_one_line(study, tmp_path, results):
    """The output folder is a file, lies on a read-only file system, or is not writable."""
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    if results == "locked" and not os.geteuid():
        pytest.skip("root may write to every folder")
    config = configured(tmp_path / "out", bids=str(study), results=str(tmp_path / results))
    code, errors = invoke("index", config)
    assert code == CommitError.exit_code
    assert len(errors) == 1
    assert "change the output folder" in errors[0]


def test_an_image_that_does_not_fit_leaves_the_old_one(tmp_path):
    """A failed write keeps the previous image and leaves no temporary file."""
    path = tmp_path / "scan.nii.gz"
    write_volume(path, IMAGE, AFFINE)
    before = path.read_bytes()
    with full_disk(), pytest.raises(CommitError, match="free space"):
        write_volume(path, 2 * IMAGE, AFFINE)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A preprocessed study of one valid subject and one subject per file of the corpus.

    The first file of each defect is an FDG image beside the valid subject's T1w image, the others are T1w images.

    Returns:
        Path of the configuration, and by scan the defect and the path of its file.
    """
    out = tmp_path_factory.mktemp("staged")
    root, files = out / "bids", {}
    write_subject(root, participants(1, 0)[0])
    t1w = next(root.glob("sub-*/anat/*_T1w.nii.gz"))
    for number, (defect, path) in enumerate(list(write_corpus(out / "corpus", [*STAGED, *SIDECARS]))):
        key = f"sub-{defect.name.replace('_', '')}{number}"
        source, target = root / key / f"anat/{key}_T1w", root / key / f"pet/{key}_trc-FDG_pet"
        for folder in (source.parent, target.parent):
            folder.mkdir(parents=True)
        # A PET image may have frames, and NaN outside its field of view.
        as_target = path.stem.startswith("00") and defect.name not in ("frames", "nan")
        if as_target:
            source.with_name(f"{source.name}.nii.gz").symlink_to(t1w)
        image = target if as_target else source
        image = path.rename(f"{image}{''.join(path.suffixes)}")
        if path.with_suffix(".json").exists():
            path.with_suffix(".json").rename(image.with_suffix(".json"))
        files[key] = defect, image
    config = load_config(configured(out / "out", bids=str(root)))
    # Without the search for duplicates, because most of the corpus is one image.
    pair_scans(root, config.study).write(config.layout)
    preprocess(config, shard=0)
    finish_preprocess(config)
    return out / "out.yaml", files


@pytest.mark.slow
def test_each_file_has_its_row_and_the_valid_scan_is_preprocessed(staged):
    """Preprocessing in worker processes lists every reason in quarantine.tsv, and `check` exits with 3."""
    path, files = staged
    layout = load_config(path).layout
    rows = {row.scan: row.reason for row in read_quarantine(layout.quarantine)}
    assert rows.keys() == files.keys()
    for key, (defect, image) in files.items():
        assert re.search(defect.words, rows[key]), (key, rows[key])
        assert image.name.split(".")[0] in rows[key]
    (valid,) = set(read_pairs(layout)["scan"]) - files.keys()
    assert layout.on_grid(Scan.parse(valid), MODALITIES["FDG"]).is_file()
    assert [folder.name for folder in layout.derivatives.glob("sub-*")] == [valid]
    code, errors = invoke("check", path)
    assert code == DataError.exit_code
    assert f"{len(files)} scans were excluded" in errors[0]
