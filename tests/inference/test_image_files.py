"""Labels of image files that belong to no dataset."""

from pathlib import Path

import pytest

from dualflow.data.quarantine import FACT, Quarantine
from dualflow.digests import sha256
from dualflow.errors import DataError, PairingError
from dualflow.inference.conversion_record import ORIGIN
from dualflow.inference.image_files import ANYWHERE, check_replaced, label_images, scan_of, scan_origin, scan_rows
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("t1.nii.gz", "sub-t1"),
        ("sub-01_T1w.nii.gz", "sub-01"),
        ("sub-01_ses-M6_acq-a_T1w.nii", "sub-01_ses-M6"),
        ("sub-01.nii.gz", "sub-01"),
        ("Jürgen's scan (2).nii.gz", "sub-Jurgensscan2"),
        ("sub-a b_T1w.nii.gz", "sub-subabT1w"),
        ("脑.nii.gz", "sub-scandcfcd4e5"),
    ],
)
def test_labels_come_from_names(name, key):
    """BIDS entities, else letters and digits, else a digest."""
    assert scan_of(Path(name)).key == key


def test_paths_are_relative_to_the_common_folder(tmp_path):
    """`..` is removed; links are not followed."""
    files = [tmp_path / "a" / "x.nii", tmp_path / "a" / ".." / "b" / "y.nii"]
    root, scans = label_images(files, "T1w")
    assert root == tmp_path
    assert scans == {Scan("x"): Path("a/x.nii"), Scan("y"): Path("b/y.nii")}


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["a/t1.nii", "b/t1.nii.gz"], PairingError, ["a/t1.nii and ", "b/t1.nii.gz would both be sub-t1"]),
        (["sub-1_run-1_T1w.nii", "sub-1_run-2_T1w.nii"], PairingError, ["sub-1_run-1_T1w.nii", "both be sub-1"]),
        (["sub-1_ses-pre-op_T1w.nii"], DataError, ["a session label has letters and digits only; rename the file"]),
        (["t1.mgz"], DataError, ["expected a NIfTI image"]),
        (["sub-1_trc-FDG_pet.nii"], DataError, ["is named as pet, but the model's source is T1w"]),
        (["t1\udcff.nii"], DataError, ["not UTF-8"]),
    ],
)
def test_unusable_names_are_refused(tmp_path, names, error, words):
    """Equal labels, other formats, other modalities and undecodable names; both files of a clash are named."""
    with pytest.raises(error) as caught:
        label_images([tmp_path / name for name in names], "T1w")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_pet_source_of_another_tracer_is_refused(tmp_path):
    """As in a dataset; names without a tracer, or with its isotope, are taken."""
    taken = ["sub-1_pet.nii", "sub-2_trc-18FFDG_pet.nii", "x_trc-fdg.nii"]
    assert len(label_images([tmp_path / name for name in taken], "FDG")[1]) == 3
    for name in ("sub-1_trc-AV45_pet.nii", "x_trc-AV45.nii"):
        with pytest.raises(DataError, match=r"is named as PET of AV45, but the model's source is FDG"):
            label_images([tmp_path / name], "FDG")


def test_results_of_another_file_of_the_dataset_are_not_replaced(tmp_path):
    """Another run of a session is another image; the same file may have changed. DICOM is made anew each time."""
    layout, scan = Layout(tmp_path / "out", "."), Scan("1")
    for name in ("run-1.nii", "run-2.nii"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(layout.scan_manifest(scan), step="preprocess", outputs={}, inputs={"source": "x"}, config={})
    facts = {ORIGIN: scan_origin("dataset", Path("run-1.nii"))}
    write_manifest(layout.manifest("convert/sub-1"), step="convert", outputs={}, inputs={}, config={}, facts=facts)
    check_replaced(layout.root, tmp_path, {scan: Path("run-1.nii")}, "dataset")
    for origin in ("dataset", "other", None):
        with pytest.raises(PairingError, match=r"holds sub-1 of another image than run-2\.nii"):
            check_replaced(layout.root, tmp_path, {scan: Path("run-2.nii")}, origin)
    check_replaced(layout.root, tmp_path, {scan: Path("run-2.nii")}, ANYWHERE)


def test_results_of_another_image_are_not_replaced(tmp_path):
    """A loop over folders with equal file names would leave one result; an excluded scan can be tried again."""
    layout, scan = Layout(tmp_path / "out", "."), Scan("t1")
    (tmp_path / "t1.nii").write_bytes(b"first")
    check_replaced(layout.root, tmp_path, {scan: Path("t1.nii")})
    inputs = {"source": sha256(tmp_path / "t1.nii")}
    write_manifest(layout.scan_manifest(scan), step="preprocess", outputs={}, inputs=inputs, config={})
    check_replaced(layout.root, tmp_path, {scan: Path("t1.nii")})
    (tmp_path / "t1.nii").write_bytes(b"second")
    with pytest.raises(PairingError, match=r"holds sub-t1 of another image than t1\.nii"):
        check_replaced(layout.root, tmp_path, {scan: Path("t1.nii")})
    # A refused scan has no volumes, and its image may be corrected.
    refusal = layout.manifest(f"convert/{scan.key}")
    refused = {"verdict": {"verdict": "refused"}}
    write_manifest(refusal, step="convert", outputs={}, inputs={}, config={}, facts=refused)
    check_replaced(layout.root, tmp_path, {scan: Path("t1.nii")})
    outputs = {"synth": tmp_path / "t1.nii"}
    write_manifest(refusal, step="convert", outputs=outputs, inputs={}, config={}, facts=refused)
    with pytest.raises(PairingError, match="holds sub-t1 of another image"):
        check_replaced(layout.root, tmp_path, {scan: Path("t1.nii")})
    facts = {FACT: Quarantine(scan.key, "preprocess", "bad").fact()}
    write_manifest(layout.scan_manifest(scan), step="preprocess", outputs={}, inputs=inputs, config={}, facts=facts)
    check_replaced(layout.root, tmp_path, {scan: Path("t1.nii")})


def test_rows_have_the_columns_of_the_index():
    """Rows are sorted by key; all have the same side information."""
    rows = scan_rows({Scan("b", "1"): Path("b.nii"), Scan("a"): Path("x/a.nii")}, {"age": 71.0, "sex": None})
    assert rows.to_dict("records") == [
        {"scan": "sub-a", "subject": "a", "session": None, "source": "x/a.nii", "target": "", "split": "convert",
         "age": 71.0, "sex": None},
        {"scan": "sub-b_ses-1", "subject": "b", "session": "1", "source": "b.nii", "target": "", "split": "convert",
         "age": 71.0, "sex": None},
    ]  # fmt: skip
