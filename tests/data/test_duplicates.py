"""Files with equal voxels under different names are duplicates, and their scans are excluded."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.index import build_index
from dualflow.errors import DataError

TRAINING_ONLY = SplitConfig(validation=0, test=0)


def write(path: Path, seed: int, *, shape=(4, 5, 6), dtype=np.int16, shift=0.0, note="", scale=None):
    """Write a small image whose voxels depend on the seed only."""
    voxels = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    image = nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1.0]) + np.eye(4)[:, [3, 0, 1, 2]] * shift)
    image.header["descrip"] = note
    if scale:
        image.header.set_slope_inter(scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture
def study(make_bids):
    """Write a dataset of images by file and seed."""

    def study(images):
        root = make_bids([])
        for file, seed in images.items():
            write(root / file, seed)
        return root

    return study


def index(root, **extra):
    return build_index(root, StudyConfig(name="t", **extra), TRAINING_ONLY)


def test_subjects_with_the_same_scan_are_both_excluded(study, pair_files):
    """The true subject is unknown, and the reasons name both files; other subjects stay."""
    files = [file for label in ("1", "2", "3") for file in pair_files(label)]
    result = index(study(dict(zip(files, [1, 2, 3, 4, 1, 6], strict=True))))
    assert result.pairs["scan"].tolist() == ["sub-2"]
    assert [row.scan for row in result.quarantined] == ["sub-1", "sub-3"]
    assert all(files[0] in row.reason and files[4] in row.reason for row in result.quarantined)
    assert [[str(path) for _, path in group] for group in result.duplicates] == [[files[0], files[4]]]


def test_the_later_of_two_equal_sessions_is_excluded(study, pair_files):
    """Sessions have their natural order: M6 precedes M12."""
    files = [*pair_files("1", "M12"), *pair_files("1", "M6"), *pair_files("2")]
    result = index(study(dict(zip(files, [1, 2, 1, 4, 5, 6], strict=True))))
    assert result.pairs["scan"].tolist() == ["sub-1_ses-M6", "sub-2"]
    assert [row.scan for row in result.quarantined] == ["sub-1_ses-M12"]


def test_a_copy_of_the_mr_in_the_session_of_the_pet_is_kept(study, pair_files):
    """The measured PET of the subject is not lost, though the original MR is in an earlier session."""
    earlier = pair_files("1", "M0")[0]
    files = [earlier, *pair_files("1", "M6"), *pair_files("2")]
    result = index(study(dict(zip(files, [1, 1, 4, 5, 6], strict=True))))
    assert result.pairs["scan"].tolist() == ["sub-1_ses-M6", "sub-2"]
    assert [row.scan for row in result.quarantined] == ["sub-1_ses-M0"]


def test_a_copy_in_another_session_does_not_keep_a_scan_with_equal_files(study, pair_files):
    """Its own files are equal, so it is unknown which of them is real."""
    files = [*pair_files("1", "M6"), *pair_files("1", "M12"), *pair_files("2")]
    result = index(study(dict(zip(files, [1, 1, 1, 4, 5, 6], strict=True))))
    assert result.pairs["scan"].tolist() == ["sub-2"]
    assert [row.scan for row in result.quarantined] == ["sub-1_ses-M12", "sub-1_ses-M6"]


def test_a_scan_with_equal_sources_is_excluded(study, pair_files):
    """A FLAIR with the voxels of the T1w is a copy under a wrong name."""
    files = [*pair_files("1"), "sub-1/anat/sub-1_FLAIR.nii.gz", *pair_files("2"), "sub-2/anat/sub-2_FLAIR.nii.gz"]
    result = index(study(dict(zip(files, [1, 2, 1, 3, 4, 5], strict=True))), extra_sources=("FLAIR",))
    assert result.pairs["scan"].tolist() == ["sub-2"]
    assert "FLAIR" in result.quarantined[0].reason


def test_one_source_may_serve_several_scans_of_a_subject(tmp_path):
    """A table pairs the only MR of a person with two PET; between people, the same file is a duplicate."""
    for seed, name in enumerate(("mr", "pet1", "pet2", "mr2", "pet3")):
        write(tmp_path / f"{name}.nii", seed)
    rows = ["1\tx\tmr.nii\tpet1.nii", "1\ty\tmr.nii\tpet2.nii", "2\tx\tmr2.nii\tpet3.nii"]
    header = "subject\tsession\tT1w\tFDG"
    (tmp_path / "samples.tsv").write_text("\n".join([header, *rows]))
    result = index(tmp_path, samples=tmp_path / "samples.tsv")
    assert result.pairs["scan"].tolist() == ["sub-1_ses-x", "sub-1_ses-y", "sub-2_ses-x"]
    assert not result.duplicates
    rows = [rows[0], "2\tx\tmr.nii\tpet2.nii", "3\tx\tmr2.nii\tpet3.nii"]
    (tmp_path / "samples.tsv").write_text("\n".join([header, *rows]))
    assert index(tmp_path, samples=tmp_path / "samples.tsv").pairs["scan"].tolist() == ["sub-3_ses-x"]


def test_all_scans_with_a_source_that_another_subject_has_too_are_excluded(tmp_path):
    """Its true subject is unknown, whichever scan of a subject it is given to."""
    for name, seed in {"mr": 0, "pet1": 1, "pet2": 2, "copy": 0, "pet3": 3, "mr3": 4, "pet4": 5}.items():
        write(tmp_path / f"{name}.nii", seed)
    rows = ["1\tx\tmr.nii\tpet1.nii", "1\ty\tmr.nii\tpet2.nii", "2\tx\tcopy.nii\tpet3.nii", "3\tx\tmr3.nii\tpet4.nii"]
    (tmp_path / "samples.tsv").write_text("\n".join(["subject\tsession\tT1w\tFDG", *rows]))
    assert index(tmp_path, samples=tmp_path / "samples.tsv").pairs["scan"].tolist() == ["sub-3_ses-x"]


def test_a_study_of_duplicates_is_an_error(study, pair_files):
    """If no scan remains, the error has the first reason."""
    files = [*pair_files("1"), *pair_files("2")]
    with pytest.raises(DataError, match=r"no usable T1w.*same voxels"):
        index(study(dict(zip(files, [1, 2, 1, 2], strict=True))))


def test_damaged_files_are_no_duplicates(study, pair_files):
    """Preprocessing reports files that cannot be read."""
    files = [*pair_files("1"), *pair_files("2")]
    root = study(dict(zip(files, [1, 2, 3, 4], strict=True)))
    for file in (files[0], files[2]):
        (root / file).write_bytes(b"damaged")
    assert index(root).quarantined == []
