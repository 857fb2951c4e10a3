"""Brain masks of a study are found by their BIDS names."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from dualflow.config import StudyConfig
from dualflow.data.scan_files import ScanFiles
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
def test_masks_are_found_by_the_names_of_common_pipelines(tmp_path, name):
    """Names with or without the image's entities and the space entity, compressed or not."""
    path = image(tmp_path / "masks/sub-01/ses-a/anat" / name)
    assert mask_of(tmp_path) == path


def test_the_most_specific_name_is_used(tmp_path):
    """A mask of the acquisition precedes one of the session."""
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
def test_masks_of_other_images_are_ignored(tmp_path, name):
    """Masks of another session, acquisition, space or structure do not fit the scan."""
    image(tmp_path / "masks/sub-01/ses-a/anat" / name)
    assert mask_of(tmp_path) is None


def test_scans_of_a_table_have_masks_by_their_key(tmp_path):
    """The name of the source file does not matter."""
    path = image(tmp_path / "masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert mask_of(tmp_path, {"scan": "sub-01", "source": "a b.nii", "target": ""}) == path


def test_an_image_with_a_long_name_has_a_mask_by_its_key(tmp_path):
    """Names of masks that are too long for the file system do not exist."""
    path = image(tmp_path / "masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    source = f"sub-01_acq-{'x' * 230}_T1w.nii"
    assert mask_of(tmp_path, {"scan": "sub-01", "source": source, "target": ""}) == path


def test_a_missing_mask_folder_stops_the_study(tmp_path):
    """Otherwise every scan would silently get a mask of the network."""
    with pytest.raises(DataError, match=r"study\.masks"):
        mask_of(tmp_path, masks="nowhere")


def test_without_a_mask_folder_there_are_no_masks(tmp_path):
    """Masks are used only if study.masks is set."""
    assert ScanFiles.of_row(tmp_path, ROW, StudyConfig(name="x")).mask is None
