"""Brain masks that a study provides: accepted on the scan's grid, refused otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from dualflow.errors import GeometryError, IntensityError
from dualflow.imaging.geometry import Volume, centred_affine
from dualflow.imaging.mask import study_mask
from dualflow.imaging.volume import write_volume

SHAPE = (40, 44, 38)
INDEX = np.indices(SHAPE)
AFFINE = centred_affine(np.zeros(3), 4.0, SHAPE)


@pytest.fixture
def scan(tmp_path):
    """A scan, and a mask on its grid: an asymmetric ball of a brain's size."""
    inside = sum((axis - (size - 1) / 2) ** 2 for axis, size in zip(INDEX, SHAPE, strict=True)) < 16.0**2
    inside[:20, :10, :10] = False  # asymmetric, so that a flip is detected
    return Volume(inside.astype(np.float32), AFFINE, tmp_path / "t1.nii.gz"), inside


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_on_the_scans_grid_is_used_unchanged(scan, tmp_path, value):
    """Any single positive value marks the brain."""
    volume, inside = scan
    write_volume(tmp_path / "m.nii.gz", value * inside, AFFINE, dtype=np.uint8)
    np.testing.assert_array_equal(study_mask(tmp_path / "m.nii.gz", volume)[0], inside)


def test_a_reoriented_mask_is_the_same_mask(scan, tmp_path):
    """Swapped and flipped axes are brought back to the scan's order, because pipelines reorient to RAS."""
    volume, inside = scan
    reoriented = inside.transpose(2, 0, 1)[:, ::-1]
    affine = AFFINE[:, [2, 0, 1, 3]] @ np.diag([1.0, -1, 1, 1])
    affine[:3, 3] = AFFINE[:3, 3] + AFFINE[:3, 0] * (SHAPE[0] - 1)
    write_volume(tmp_path / "m.nii.gz", reoriented, affine, dtype=np.uint8)
    np.testing.assert_array_equal(study_mask(tmp_path / "m.nii.gz", volume)[0], inside)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda inside, affine: (inside, affine + np.eye(4, k=3) * 0.8), id="shifted by a fifth of a voxel"
        ),
        pytest.param(lambda inside, affine: (inside[:, :, :-1], affine), id="one slice fewer"),
        pytest.param(lambda inside, affine: (inside, affine @ np.diag([0.5, 0.5, 0.5, 1])), id="finer"),
        pytest.param(lambda inside, affine: (np.pad(inside, 2), affine), id="larger"),
    ],
)
def test_a_mask_on_another_grid_is_refused(scan, tmp_path, change):
    """Masks are never interpolated silently."""
    volume, inside = scan
    array, affine = change(inside, AFFINE)
    write_volume(tmp_path / "m.nii.gz", array, affine, dtype=np.uint8)
    with pytest.raises(GeometryError, match=r"m\.nii\.gz: its corners lie \d+\.\d voxels from those of t1\.nii\.gz"):
        study_mask(tmp_path / "m.nii.gz", volume)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param(lambda inside: inside * (0.2 + INDEX[0] / 99), "threshold", id="probabilities"),
        pytest.param(lambda inside: inside + 1.0 * (INDEX[0] > 20), "holds 3 values from 0 to 2", id="labels"),
        pytest.param(lambda inside: inside + 1.0, "holds 2 values from 1 to 2", id="no background"),
        pytest.param(lambda inside: inside & (INDEX[0] > 26), "ml", id="too small"),
        pytest.param(lambda inside: inside & (INDEX.sum(axis=0) % 5 < 3), "solidity", id="not solid"),
    ],
)
def test_an_image_that_is_no_brain_mask_is_refused(scan, tmp_path, values, words):
    """Probabilities, label maps, and masks without the size or shape of a brain."""
    volume, inside = scan
    write_volume(tmp_path / "m.nii.gz", values(inside), AFFINE)
    with pytest.raises(IntensityError, match=rf"m\.nii\.gz: .*{words}"):
        study_mask(tmp_path / "m.nii.gz", volume)
