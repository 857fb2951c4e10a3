"""The same voxels under two names: found whatever else differs, and set aside."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dualflow.config import SplitConfig, StudyConfig
from dualflow.data.index import build_index
from dualflow.errors import DataError

EVERYONE_TRAINS = SplitConfig(validation=0, test=0)


def write(path: Path, seed: int, *, shape=(4, 5, 6), dtype=np.int16, shift=0.0, note="", scale=None):
    """A small image whose voxels depend on the seed alone."""
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
    """A dataset whose images are given as file -> seed."""

    def study(images):
        root = make_bids([])
        for file, seed in images.items():
            write(root / file, seed)
        return root

    return study


def index(root, **extra):
    return build_index(root, StudyConfig(name="t", **extra), EVERYONE_TRAINS)


def test_two_people_with_one_scan_are_both_set_aside(study, pair_files):
    """No one knows whose it is, and the reasons name both files; people with scans of their own stay."""
    files = [file for label in ("1", "2", "3") for file in pair_files(label)]
    found = index(study(dict(zip(files, [1, 2, 3, 4, 1, 6], strict=True))))
    assert found.pairs["scan"].tolist() == ["sub-2"]
    assert [row.scan for row in found.quarantined] == ["sub-1", "sub-3"]
    assert all(files[0] in row.reason and files[4] in row.reason for row in found.quarantined)
    assert [[str(path) for _, path in group] for group in found.duplicates] == [[files[0], files[4]]]


def test_the_later_of_a_persons_visits_is_set_aside(study, pair_files):
    """Visits are in their natural order: M6 comes before M12."""
    files = [*pair_files("1", "M12"), *pair_files("1", "M6"), *pair_files("2")]
    found = index(study(dict(zip(files, [1, 2, 1, 4, 5, 6], strict=True))))
    assert found.pairs["scan"].tolist() == ["sub-1_ses-M6", "sub-2"]
    assert [row.scan for row in found.quarantined] == ["sub-1_ses-M12"]


def test_a_scan_whose_own_files_are_alike_is_set_aside(study, pair_files):
    """A FLAIR that is the T1w under another name teaches nothing."""
    files = [*pair_files("1"), "sub-1/anat/sub-1_FLAIR.nii.gz", *pair_files("2"), "sub-2/anat/sub-2_FLAIR.nii.gz"]
    found = index(study(dict(zip(files, [1, 2, 1, 3, 4, 5], strict=True))), extra_sources=("FLAIR",))
    assert found.pairs["scan"].tolist() == ["sub-2"]
    assert "FLAIR" in found.quarantined[0].reason


def test_a_study_of_copies_is_an_error(study, pair_files):
    """Where nothing is left, the first reason is told."""
    files = [*pair_files("1"), *pair_files("2")]
    with pytest.raises(DataError, match=r"no usable T1w.*same voxels"):
        index(study(dict(zip(files, [1, 2, 1, 2], strict=True))))


def test_damaged_files_are_left_to_preprocessing(study, pair_files):
    """Two files that cannot be read are not called copies of each other."""
    files = [*pair_files("1"), *pair_files("2")]
    root = study(dict(zip(files, [1, 2, 3, 4], strict=True)))
    for file in (files[0], files[2]):
        (root / file).write_bytes(b"damaged")
    assert index(root).quarantined == []
