"""DICOM folders, with an executable that stands in for dcm2niix."""

import gzip
import hashlib
import json
import sys

import nibabel as nib
import numpy as np
import pytest

from dualflow.errors import ConfigError, DataError, PairingError
from dualflow.imaging.volume import sidecar_path
from dualflow.inference import dicom
from dualflow.inference.dicom import Series, choose_series, convert_dicom, is_dicom_folder
from dualflow.layout import Scan

FAKE = '''#!{python}
"""Writes the image that each .dcm file describes, as dcm2niix names it."""
import json, sys, time
from pathlib import Path
import nibabel, numpy
arguments = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2]))
assert arguments["-f"] == "%k_%s" and arguments["-ba"] == "y", arguments
files = sorted(Path(sys.argv[-1]).rglob("*.dcm"))
for file in files:
    series = json.loads(file.read_text())
    time.sleep(series.get("sleep", 0))
    path = Path(arguments["-o"], series["study"] + "_" + str(series["number"]))
    voxels = numpy.arange(numpy.prod(series["shape"]), dtype="i2").reshape(series["shape"])
    image = nibabel.Nifti1Image(voxels, numpy.eye(4))
    image.header["aux_file"] = series["sidecar"]["ImageComments"]
    for ending in ("", *series["endings"]):
        nibabel.save(image, f"{{path}}{{ending}}.nii.gz")
    Path(f"{{path}}.json").write_text(json.dumps(series["sidecar"]))
print("Chris Rorden's dcm2niiX version v1")
print("Error: no images", file=sys.stderr)
print("Conversion required 0.1 seconds")
broken = sum("broken" in file.name for file in files)
sys.exit(1 if broken else 0 if files else 2)
'''


@pytest.fixture
def dcm2niix(tmp_path, monkeypatch):
    """The stand-in as the only program on PATH."""
    program = tmp_path / "bin" / "dcm2niix"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def write_series(
    folder, study, number, description, shape=(24, 24, 24), sleep=0, comment="", endings=(), modality="MR"
):
    """Write a file that the stand-in converts; it writes the image again under names with these endings."""
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = {"Modality": modality, "SeriesDescription": description, "ImageComments": comment}
    content = {"study": study, "number": number, "shape": shape, "sleep": sleep, "sidecar": sidecar, "endings": endings}
    (folder / f"{study}-{number}.dcm").write_text(json.dumps(content))


def test_the_source_series_of_each_exam_is_converted(dcm2niix, tmp_path):
    """Labels come from the study UID alone; an exam without a single series is excluded with the series' numbers."""
    folder = tmp_path / "DOE JOHN"
    write_series(folder / "a", "1.2.3", 1, "localizer", (24, 24, 3))
    write_series(folder / "a", "1.2.3", 4, "T1 MPRAGE")
    write_series(folder / "a", "1.2.3", 5, "3D FLAIR")
    write_series(folder / "b", "1.2.4", 2, "t1_mprage")
    write_series(folder / "b", "1.2.4", 3, "t1_mprage gd")
    write_series(folder / "c", "1.2.5", 7, "3D FLAIR")
    out = tmp_path / "out"
    scans, excluded, notes = convert_dicom([folder], out, "T1w")
    [(scan, path)] = scans.items()
    assert scan == Scan(f"dcm{hashlib.sha256(b'1.2.3').hexdigest()[:8]}")
    assert path.as_posix() == f"{scan.key}/anat/{scan.key}_T1w.nii.gz"
    assert nib.load(out / path).shape == (24, 24, 24)
    assert json.loads(sidecar_path(out / path).read_text()) == {"Modality": "MR"}
    reasons = {row.reason: row.scan for row in excluded}
    two, none = sorted(reasons)
    assert two.startswith("2 series fit T1w: 2, 3; name the folder")
    assert none.startswith("none of 1 series is a 3D T1w image: 7; check the folder")
    assert notes == [
        f"{scan.key} is series 4 'T1 MPRAGE' of {folder}",
        f"{reasons[two]} has series 2 't1_mprage', 3 't1_mprage gd' of {folder}",
        f"{reasons[none]} has series 7 '3D FLAIR' of {folder}",
    ]
    assert not [path for path in out.rglob("*") if "DOE" in path.name]

    before = (out / path).stat().st_mtime_ns
    convert_dicom([folder], out, "T1w")
    assert (out / path).stat().st_mtime_ns == before, "an equal image was written again"


def test_what_people_typed_is_not_copied(dcm2niix, tmp_path):
    """Comments may hold a name: dcm2niix writes them into the sidecar, and into texts of the header."""
    write_series(tmp_path / "d", "1", 2, "T1", comment="DOE^JANE 19500101")
    [path] = convert_dicom([tmp_path / "d"], tmp_path / "out", "T1w")[0].values()
    image = tmp_path / "out" / path
    assert b"DOE" not in gzip.decompress(image.read_bytes())
    assert "DOE" not in sidecar_path(image).read_text()
    loaded = nib.load(image)
    assert np.array_equal(np.asarray(loaded.dataobj).ravel(), np.arange(24**3, dtype="i2"))


def test_reasons_hold_no_description(dcm2niix, tmp_path):
    """Reasons are written to the tables and the page of OUT; descriptions may hold a name, and are for the console."""
    for number in (2, 3):
        write_series(tmp_path / "d", "1", number, f"T1 DOE^JANE {number}")
    write_series(tmp_path / "d", "2", 4, "FLAIR DOE^JANE")
    _, excluded, notes = convert_dicom([tmp_path / "d"], tmp_path / "out", "T1w")
    assert len(excluded) == 2
    assert not [row for row in excluded if "DOE" in row.reason]
    assert sum("DOE^JANE" in note for note in notes) == 2


def test_images_of_an_earlier_version_lose_their_texts_and_damaged_ones_are_replaced(dcm2niix, tmp_path):
    """They are of the same series, so no other image is lost."""
    write_series(tmp_path / "d", "1", 2, "T1", comment="DOE^JANE")
    [path] = convert_dicom([tmp_path / "d"], tmp_path / "out", "T1w")[0].values()
    image = tmp_path / "out" / path
    right = image.read_bytes()
    typed = bytearray(gzip.decompress(right))
    typed[228:232] = b"JANE"
    for content in (gzip.compress(typed), right[:200]):
        image.write_bytes(content)
        convert_dicom([tmp_path / "d"], tmp_path / "out", "T1w")
        assert image.read_bytes() == right


def test_another_series_of_an_exam_does_not_replace_the_first(dcm2niix, tmp_path):
    """Both have the label of the exam."""
    write_series(tmp_path / "a", "1", 3, "T1")
    write_series(tmp_path / "b", "1", 7, "T1", shape=(24, 24, 25))
    [path] = convert_dicom([tmp_path / "a"], tmp_path / "out", "T1w")[0].values()
    with pytest.raises(PairingError, match=r"is there from another image than series 7 'T1' of .*b; choose another"):
        convert_dicom([tmp_path / "b"], tmp_path / "out", "T1w")
    assert nib.load(tmp_path / "out" / path).shape == (24, 24, 24)


def test_a_series_without_a_telling_name_is_taken_if_it_is_the_only_one(dcm2niix, tmp_path):
    """A description that names another modality is not."""
    write_series(tmp_path / "d", "1", 2, "sag iso")
    assert len(convert_dicom([tmp_path / "d"], tmp_path / "out", "T1w")[0]) == 1
    write_series(tmp_path / "d", "1", 3, "ax iso")
    assert len(convert_dicom([tmp_path / "d"], tmp_path / "out", "T1w")[1]) == 1


@pytest.mark.parametrize(("source", "number"), [("T1w", "1"), ("T2w", "2"), ("FLAIR", "3")])
def test_series_are_chosen_by_description(tmp_path, source, number):
    """Names of sequences such as MPRAGE mean T1w; FLAIR is not T2w."""
    series = []
    for text, kind in [("sag MPRAGE", []), ("T2 SPACE", []), ("t2 space flair", []), ("T1 MPR", ["DERIVED"])]:
        path = tmp_path / f"{len(series) + 1}.nii.gz"
        nib.save(nib.Nifti1Image(np.ones((24, 24, 24), "i2"), None), path)
        series.append(Series("1", str(len(series) + 1), path, {"SeriesDescription": text, "ImageType": kind}, tmp_path))
    assert choose_series(series, source).number == number


@pytest.mark.parametrize(
    ("description", "protocol", "named"),
    [
        ("MPRAGE_iPAT2", "", "T1w"),
        ("t1_mprage_post2", "", "T1w"),
        ("sT1W_3D_TFE", "", "T1w"),
        ("Sag MPRAGE", "Brain T1 T2 FLAIR", "T1w"),
        ("sT2W_TSE", "", "T2w"),
        ("AxT2 SPACE", "", "T2w"),
        ("3D_T2", "", "T2w"),
        ("T2* GRE", "", None),
        ("T2* GRE", "t1_mprage", None),
        ("SWI", "Brain T1 T2 FLAIR", None),
        ("AxialT2", "", "T2w"),
        ("AX T2 FLAIR", "t1 brain", "FLAIR"),
        ("", "t2_space_sag", "T2w"),
        ("sag iso", "brain", None),
        ("t2_space_dark-fluid_sag_p2_iso", "", "FLAIR"),
        ("t2_tirm_tra_dark-fluid", "", "FLAIR"),
        ("Sag T1 FLAIR", "", None),
    ],
)
def test_words_of_a_description_name_the_modality(tmp_path, description, protocol, named):
    """An acceleration of 2 is no T2, and the protocol counts for a series without a description alone."""
    sidecar = {"SeriesDescription": description, "ProtocolName": protocol}
    assert dicom._named(Series("1", "1", tmp_path / "1.nii.gz", sidecar, tmp_path)) == named


@pytest.mark.parametrize("source", ["T1w", "CT"])
def test_a_series_with_gaps_between_its_slices(dcm2niix, tmp_path, source):
    """dcm2niix squeezes the slices of such an MR into one image; a CT with variable spacing is resampled."""
    kind = {"T1w": "MR", "CT": "CT"}[source]
    write_series(tmp_path / "d", "1", 3, "head", endings=["_Eq_1"], modality=kind)
    scans, excluded, _ = convert_dicom([tmp_path / "d"], tmp_path / "out", source)
    if source == "CT":
        [path] = scans.values()
        assert json.loads(sidecar_path(tmp_path / "out" / path).read_text()) == {"Modality": "CT"}
        return
    assert not scans
    assert excluded[0].reason == "series 3: slices are missing or unequally spaced; export the series again"
    write_series(tmp_path / "d", "1", 4, "head")
    [(scan, path)] = convert_dicom([tmp_path / "d"], tmp_path / "out", source)[0].items()
    assert (tmp_path / "out" / path).is_file(), f"{scan.key}: the whole series was not taken"


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(dcm2niix, tmp_path):
    """It is excluded under a label that does not tell its name; the console has the message."""
    write_series(tmp_path / "K", "1", 2, "T1")
    (tmp_path / "DOE JOHN").mkdir()
    write_series(tmp_path / "broken", "2-broken", 2, "T1")
    folders = [tmp_path / name for name in ("DOE JOHN", "K", "broken")]
    scans, excluded, notes = convert_dicom(folders, tmp_path / "out", "T1w")
    assert len(scans) == 1
    assert len({row.scan for row in excluded}) == 2
    assert {row.reason for row in excluded} == {"dcm2niix cannot convert this folder; the console has its message"}
    assert not [row for row in excluded if "DOE" in row.scan]
    assert f"{folders[0]}: dcm2niix wrote no image (exit code 2: Error: no images)" in notes[0]
    assert f"{folders[2]}: dcm2niix did not finish (exit code 1: Error: no images)" in notes[1]


def test_errors_say_what_to_do(dcm2niix, tmp_path, monkeypatch):
    """No DICOM file, a deadline that passes, and a missing program."""
    folder, out = tmp_path / "d", tmp_path / "out"
    folder.mkdir()
    with pytest.raises(DataError, match=r"wrote no image \(exit code 2: Error: no images\)"):
        convert_dicom([folder], out, "T1w")
    write_series(folder, "1", 2, "T1", sleep=60)
    monkeypatch.setattr(dicom, "DEADLINE_S", 0.2)
    with pytest.raises(DataError, match=r"longer than 0\.2 s"):
        convert_dicom([folder], out, "T1w")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="run `pip install dcm2niix`"):
        convert_dicom([folder], out, "T1w")
    assert not out.exists()


def test_dicom_folders_are_recognised(tmp_path):
    """By the magic bytes or the extension of a file at any depth."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "im1").write_bytes(b"\0" * 128 + b"DIC")
    assert not is_dicom_folder(tmp_path)
    (tmp_path / "a" / "b" / "im1").write_bytes(b"\0" * 128 + b"DICM")
    assert is_dicom_folder(tmp_path)
    (tmp_path / "a" / "b" / "im1").rename(tmp_path / "x.DCM")
    (tmp_path / "x.DCM").write_bytes(b"")
    assert is_dicom_folder(tmp_path)
