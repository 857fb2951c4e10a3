"""Motion correction between frames of a simulated head with known motion."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine
from pet_files import save_pet
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dualflow.config import PreprocessConfig
from dualflow.imaging.geometry import Volume, centred_affine, resample
from dualflow.imaging.mni_template import coarse_template
from dualflow.imaging.motion import STILL_MM, find_motion, working_copy
from dualflow.imaging.pet import read_pet
from dualflow.imaging.sidecar import read_sidecar

SHAPE = (46, 54, 44)
AFFINE = centred_affine(np.array([0.0, -18.0, 5.0]), 4.0, SHAPE)
IMAGE, MASK = coarse_template()
POINTS = apply_affine(MASK.affine, np.argwhere(MASK.array > 0)[::50].astype(float))


def rigid(angles, shift):
    points_map = np.eye(4)
    points_map[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    points_map[:3, 3] = shift
    return points_map


STILL, SMALL, LARGE = np.eye(4), rigid((1, -1, 2), (2, -1, 1.5)), rigid((6, -3, 5), (-7, 5, 9))


def frame(motion, *, grey=0.6, noise=0.1, seed=0, scale=1.0):
    """Return a frame of a moved head; uptake is highest where the T1 value is `grey`."""
    uptake = np.exp(-(((IMAGE.array - grey) / 0.25) ** 2)) * (MASK.array > 0)
    moved = resample(Volume(uptake.astype(np.float32), IMAGE.affine), AFFINE, SHAPE, np.linalg.inv(motion))
    noise_image = np.random.default_rng(seed).normal(0, noise, SHAPE)
    return Volume((scale * (gaussian_filter(moved, 0.7) + noise_image)).astype(np.float32), AFFINE)


def estimate(frames, seconds=None):
    """Return the reference frame and the motion of each frame; frame 0 lasts longest by default."""
    copies = {index: working_copy(volume) for index, volume in frames.items()}
    return find_motion(copies, seconds or {index: 600.0 if index == 0 else 300.0 for index in frames})


def error_mm(motion, true):
    """Return the mean error over the brain."""
    return np.linalg.norm(apply_affine(motion.to_frame, POINTS) - apply_affine(true, POINTS), axis=1).mean()


def test_known_motion_is_recovered():
    """The mean error over the brain is below 1 mm, with noise and with uptake that changes between frames."""
    true = {0: STILL, 1: SMALL, 4: LARGE, 5: SMALL}
    frames = {index: frame(motion, seed=index, noise=0.2) for index, motion in true.items()}
    frames[5] = frame(SMALL, grey=0.7, seed=5, scale=1.2)
    reference, motions = estimate(frames)
    assert reference == 0
    for index, motion in motions.items():
        assert error_mm(motion, true[index]) < 1, index
        assert motion.mean_mm == pytest.approx(error_mm(motions[0], true[index]), abs=1)
        assert (motion.placed_by, motion.note) == (index, None)
        assert motion.still == (index == 0)


def test_a_still_head_is_not_moved():
    """Noise causes no motion, and equal frames give bit-identical maps."""
    frames = {index: frame(STILL, seed=index) for index in range(3)}
    _, motions = estimate(frames)
    assert all(motion.still for motion in motions.values())
    assert max(motion.mean_mm for motion in motions.values()) < STILL_MM
    _, repeated = estimate(frames)
    for index, motion in motions.items():
        np.testing.assert_array_equal(motion.to_frame, repeated[index].to_frame)


def test_a_frame_without_a_head_takes_the_motion_of_its_neighbour():
    """A frame with almost no counts, and a frame of noise."""
    noise = np.random.default_rng(9).uniform(0, 0.8, SHAPE).astype(np.float32)
    frames = {0: frame(STILL), 1: frame(LARGE, scale=0.01), 2: frame(LARGE, seed=2), 3: Volume(noise, AFFINE)}
    reference, motions = estimate(frames, {0: 900.0, 1: 10.0, 2: 300.0, 3: 300.0})
    assert reference == 0
    assert error_mm(motions[2], LARGE) < 1
    # Frame 1 is equally near to frames 0 and 2; frame 3 is nearest to frame 2.
    assert (motions[1].placed_by, motions[3].placed_by) == (0, 2)
    assert "of the reference frame's counts" in motions[1].note
    assert "the reference frame" in motions[3].note
    np.testing.assert_array_equal(motions[3].to_frame, motions[2].to_frame)


def test_frames_without_a_head_are_not_moved():
    """Frames of zeros or negative values have no motion."""
    for value in (0.0, -1.0):
        frames = {index: Volume(np.full(SHAPE, value, np.float32), AFFINE) for index in range(2)}
        assert all(motion.still and motion.note for motion in estimate(frames)[1].values())


def test_a_thin_series_can_be_downsampled():
    """A working copy keeps at least two voxels along each axis, and its centre."""
    thin = Volume(np.random.default_rng(0).random((40, 40, 3)).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    copy = working_copy(thin)
    assert copy.array.shape == (10, 10, 3)
    centres = [apply_affine(image.affine, (np.array([image.array.shape]) - 1) / 2)[0] for image in (thin, copy)]
    np.testing.assert_allclose(*centres)


@pytest.fixture
def series(tmp_path):
    frames = [frame(motion, noise=0.02, seed=index) for index, motion in enumerate((STILL, LARGE, STILL))]
    times = {"FrameTimesStart": [0, 600, 900], "FrameDuration": [600, 300, 300], "Units": "SUV"}
    return save_pet(tmp_path / "pet.nii", np.stack([volume.array for volume in frames]), AFFINE, **times)


def test_frames_are_aligned_before_they_are_averaged(series):
    """The moved frame is corrected; the record has the correction and a note of the motion."""
    configs = (PreprocessConfig(pet_motion=motion) for motion in (True, False))
    corrected, uncorrected = (read_pet(series, read_sidecar(series), config) for config in configs)
    truth = frame(STILL, noise=0.0).array
    errors = [np.sqrt(((volume.array - truth) ** 2).mean()) for volume, _ in (corrected, uncorrected)]
    assert errors[0] < 0.5 * errors[1]
    motion = corrected[1]["motion"]
    assert motion["reference_frame"] == 0
    assert [motion["frames"][index]["corrected"] for index in "012"] == [False, True, False]
    assert "moves by up to" in " ".join(corrected[1]["notes"])
    assert "motion" not in uncorrected[1]
    assert uncorrected[1]["notes"] == []


def test_a_moved_frame_does_not_count_where_it_is_nan(tmp_path):
    """Its voxels of NaN move with the others, and the mean there is that of the other frames."""
    frames = [frame(motion, noise=0.0).array for motion in (STILL, LARGE, STILL)]
    frames[1][..., : SHAPE[2] // 3] = np.nan
    times = {"FrameTimesStart": [0, 600, 900], "FrameDuration": [600, 300, 300], "Units": "SUV"}
    path = save_pet(tmp_path / "pet.nii", np.stack(frames), AFFINE, **times)
    volume, record = read_pet(path, times, PreprocessConfig())
    assert record["motion"]["frames"]["1"]["corrected"]
    low = frames[0][..., : SHAPE[2] // 3]
    assert np.abs(volume.array[..., : SHAPE[2] // 3] - low).max() < 0.05 * low.max()
