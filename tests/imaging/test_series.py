"""A PET series is read frame by frame."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from pet_files import AFFINE, SHAPE, save_pet

from dualflow.errors import HeaderError, IntensityError
from dualflow.imaging.series import open_series

FRAMES = np.random.default_rng(0).gamma(4.0, 100.0, (3, *SHAPE))


@pytest.mark.parametrize("name", ["pet.nii", "pet.nii.gz"])
def test_frames_equal_nibabels(tmp_path, name):
    """Each requested frame has the voxels and affine that nibabel reads."""
    path = save_pet(tmp_path / name, FRAMES)
    series = open_series(path)
    frames = dict(series.frames([0, 2]))
    assert (series.count, series.shape, list(frames)) == (3, SHAPE, [0, 2])
    for index, frame in frames.items():
        np.testing.assert_array_equal(frame.array, np.asarray(nib.load(path).dataobj)[..., index])
        np.testing.assert_allclose(frame.affine, AFFINE)


@pytest.mark.parametrize("frames", [FRAMES[0], FRAMES[:1]])
def test_a_static_image_is_a_series_of_one_frame(tmp_path, frames):
    """A 3D file and a 4D file with one frame are equivalent."""
    series = open_series(save_pet(tmp_path / "pet.nii", frames))
    ((index, frame),) = series.frames([0])
    assert (series.count, index) == (1, 0)
    np.testing.assert_array_equal(frame.array, FRAMES[0].astype(np.float32))


def test_a_file_truncated_after_the_requested_frame_is_refused(tmp_path):
    """Files are read to their end, because a truncated file may have other damage."""
    path = save_pet(tmp_path / "pet.nii.gz", FRAMES)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(HeaderError, match="copy it again"):
        list(open_series(path).frames([0]))


def test_only_requested_frames_must_be_finite(tmp_path):
    """A frame with NaN is refused if it is requested, and ignored otherwise."""
    frames = FRAMES.copy()
    frames[1, 2, 3, 4] = np.nan
    series = open_series(save_pet(tmp_path / "pet.nii", frames))
    assert [index for index, _ in series.frames([0, 2])] == [0, 2]
    with pytest.raises(IntensityError, match="NaN"):
        list(series.frames([0, 1]))
