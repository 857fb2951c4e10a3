"""A study's own brain masks are found by their names, and what is done rests on their content."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from dualflow.config import StudyConfig
from dualflow.data.raw_scans import ScanFiles
from dualflow.errors import DataError

ROW = {"scan": "sub-01_ses-a", "source": "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.nii.gz", "target": ""}


def image(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((4, 4, 4), np.uint8)
    array[1] = value
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def mask_of(tmp_path, row=ROW, masks="masks"):
    return ScanFiles.of_row(tmp_path, row, StudyConfig(name="x", masks=tmp_path / masks)).mask


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-a_acq-x_desc-brain_mask.nii.gz",
        "sub-01_ses-a_acq-x_space-T1w_desc-brain_mask.nii",
        "sub-01_ses-a_desc-brain_mask.nii.gz",
        "sub-01_ses-a_space-orig_desc-brain_mask.nii.gz",
    ],
)
def test_masks_are_found_by_the_names_that_pipelines_give(tmp_path, name):
    """With the entities of their image or without, with the space named or not, packed or not."""
    path = image(tmp_path / "masks/sub-01/ses-a/anat" / name)
    assert mask_of(tmp_path) == path


def test_the_name_that_says_most_is_taken(tmp_path):
    """A mask of just this acquisition goes before one of the whole session."""
    folder = tmp_path / "masks/sub-01/ses-a/anat"
    image(folder / "sub-01_ses-a_desc-brain_mask.nii.gz")
    path = image(folder / "sub-01_ses-a_acq-x_desc-brain_mask.nii.gz")
    assert mask_of(tmp_path) == path


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-b_desc-brain_mask.nii.gz",
        "sub-01_ses-a_acq-y_desc-brain_mask.nii.gz",
        "sub-01_ses-a_space-MNI152NLin2009cAsym_res-2_desc-brain_mask.nii.gz",
        "sub-01_ses-a_desc-csf_mask.nii.gz",
    ],
)
def test_masks_of_something_else_are_not_taken(tmp_path, name):
    """Another session, acquisition, space or structure is not the brain on this scan's grid."""
    image(tmp_path / "masks/sub-01/ses-a/anat" / name)
    assert mask_of(tmp_path) is None


def test_scans_of_a_table_have_masks_by_their_key(tmp_path):
    """Whatever the source's file is called."""
    path = image(tmp_path / "masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert mask_of(tmp_path, {"scan": "sub-01", "source": "a b.nii", "target": ""}) == path


def test_a_folder_that_is_not_there_stops_the_study(tmp_path):
    """Or every scan would silently get another mask than the one that was asked for."""
    with pytest.raises(DataError, match=r"study\.masks"):
        mask_of(tmp_path, masks="nowhere")


def test_no_masks_are_looked_for_unless_asked(tmp_path):
    """Without study.masks there are none."""
    assert ScanFiles.of_row(tmp_path, ROW, StudyConfig(name="x")).mask is None
