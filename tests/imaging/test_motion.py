"""Motion between frames is found on a simulated head whose true motion is known."""

from __future__ import annotations

import numpy as np
import pytest
from pet_files import save_pet
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dualflow.config import PreprocessConfig
from dualflow.imaging.geometry import Volume, apply_map, centred_affine, resample
from dualflow.imaging.mni_template import coarse_template
from dualflow.imaging.motion import STILL_MM, find_motion, working_copy
from dualflow.imaging.pet import read_pet
from dualflow.imaging.sidecar import read_sidecar

SHAPE = (46, 54, 44)
AFFINE = centred_affine(np.array([0.0, -18.0, 5.0]), 4.0, SHAPE)
IMAGE, MASK = coarse_template()
POINTS = apply_map(MASK.affine, np.argwhere(MASK.array > 0)[::50].astype(float))


def rigid(angles, shift):
    points_map = np.eye(4)
    points_map[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    points_map[:3, 3] = shift
    return points_map


STILL, SMALL, LARGE = np.eye(4), rigid((1, -1, 2), (2, -1, 1.5)), rigid((6, -3, 5), (-7, 5, 9))


def frame(motion, *, grey=0.6, noise=0.1, seed=0, scale=1.0):
    """A head that has moved; `grey` is the T1 value of the tissue that takes up most, which changes with time."""
    uptake = np.exp(-(((IMAGE.array - grey) / 0.25) ** 2)) * (MASK.array > 0)
    there = resample(Volume(uptake.astype(np.float32), IMAGE.affine), AFFINE, SHAPE, np.linalg.inv(motion))
    drawn = np.random.default_rng(seed).normal(0, noise, SHAPE)
    return Volume((scale * (gaussian_filter(there, 0.7) + drawn)).astype(np.float32), AFFINE)


def found(frames, seconds=None):
    copies = {index: working_copy(one) for index, one in frames.items()}
    return find_motion(copies, seconds or {index: 600.0 if index == 0 else 300.0 for index in frames})


def error_mm(motion, true):
    return np.linalg.norm(apply_map(motion.to_frame, POINTS) - apply_map(true, POINTS), axis=1).mean()


def test_planted_motion_is_found():
    """Each frame to within 1 mm on average over the brain, noisy as it is and with the uptake going elsewhere."""
    true = {0: STILL, 1: SMALL, 4: LARGE, 5: SMALL}
    frames = {index: frame(motion, seed=index, noise=0.2) for index, motion in true.items()}
    frames[5] = frame(SMALL, grey=0.7, seed=5, scale=1.2)
    reference, motions = found(frames)
    assert reference == 0
    for index, motion in motions.items():
        assert error_mm(motion, true[index]) < 1, index
        assert motion.mean_mm == pytest.approx(error_mm(motions[0], true[index]), abs=1)
        assert (motion.placed_by, motion.note) == (index, None)
        assert motion.still == (index == 0)


def test_a_head_that_keeps_still_is_left_alone():
    """Noise moves nothing, and equal frames give the same map to the last bit."""
    frames = {index: frame(STILL, seed=index) for index in range(3)}
    _, motions = found(frames)
    assert all(motion.still for motion in motions.values())
    assert max(motion.mean_mm for motion in motions.values()) < STILL_MM
    _, again = found(frames)
    for index, motion in motions.items():
        np.testing.assert_array_equal(motion.to_frame, again[index].to_frame)


def test_a_frame_that_shows_no_head_lies_as_its_neighbour():
    """One of almost no counts, and one that is all noise."""
    noise = np.random.default_rng(9).uniform(0, 0.8, SHAPE).astype(np.float32)
    frames = {0: frame(STILL), 1: frame(LARGE, scale=0.01), 2: frame(LARGE, seed=2), 3: Volume(noise, AFFINE)}
    reference, motions = found(frames, {0: 900.0, 1: 10.0, 2: 300.0, 3: 300.0})
    assert reference == 0
    assert error_mm(motions[2], LARGE) < 1
    # Frame 1 is as near to the reference as to frame 2; frame 3's nearest is frame 2.
    assert (motions[1].placed_by, motions[3].placed_by) == (0, 2)
    assert "of the reference frame's counts" in motions[1].note
    assert "the reference frame" in motions[3].note
    np.testing.assert_array_equal(motions[3].to_frame, motions[2].to_frame)


def test_frames_without_a_head_are_left_alone():
    """Nothing but zeros, or but negative values, has no motion."""
    for value in (0.0, -1.0):
        frames = {index: Volume(np.full(SHAPE, value, np.float32), AFFINE) for index in range(2)}
        assert all(motion.still and motion.note for motion in found(frames)[1].values())


def test_a_thin_series_can_be_shrunk():
    """A copy keeps at least two voxels along each axis, and its middle."""
    thin = Volume(np.random.default_rng(0).random((40, 40, 3)).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    copy = working_copy(thin)
    assert copy.array.shape == (10, 10, 3)
    middles = [apply_map(one.affine, (np.array([one.array.shape]) - 1) / 2)[0] for one in (thin, copy)]
    np.testing.assert_allclose(*middles)


@pytest.fixture
def series(tmp_path):
    frames = [frame(motion, noise=0.02, seed=index) for index, motion in enumerate((STILL, LARGE, STILL))]
    times = {"FrameTimesStart": [0, 600, 900], "FrameDuration": [600, 300, 300], "Units": "SUV"}
    return save_pet(tmp_path / "pet.nii", np.stack([one.array for one in frames]), AFFINE, **times)


def test_the_mean_is_free_of_motion(series):
    """The moved frame is brought back before the mean is taken; what was done is recorded and the motion noted."""
    configs = (PreprocessConfig(pet_motion=motion) for motion in (True, False))
    sharp, blurred = (read_pet(series, read_sidecar(series), config) for config in configs)
    truth = frame(STILL, noise=0.0).array
    errors = [np.sqrt(((volume.array - truth) ** 2).mean()) for volume, _ in (sharp, blurred)]
    assert errors[0] < 0.5 * errors[1]
    motion = sharp[1]["motion"]
    assert motion["reference_frame"] == 0
    assert [motion["frames"][index]["corrected"] for index in "012"] == [False, True, False]
    assert "moves by up to" in " ".join(sharp[1]["notes"])
    assert "motion" not in blurred[1]
    assert blurred[1]["notes"] == []
