"""The detail of an image: how much its intensities vary within a voxel of the model grid."""

from __future__ import annotations

import numpy as np
import pytest

from dualflow.imaging.detail import MAX_DETAIL, detail_on_grid
from dualflow.imaging.geometry import Volume

GRID = np.diag([4.0, 4.0, 4.0, 1.0]), (6, 6, 6)
BRAIN = np.zeros(GRID[1], bool)
BRAIN[1:5, 1:5, 1:5] = True
SCALE = {"slope": 10.0}


def volume(array) -> Volume:
    """Return an image of 2 mm voxels, two of which lie in a voxel of the grid along each axis."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -1
    return Volume(np.asarray(array, np.float32), affine)


def test_it_is_the_standard_deviation_of_the_parts():
    """On a grid of the parts nothing is interpolated: the detail is that of each block of eight voxels."""
    array = np.random.default_rng(0).normal(size=(12, 12, 12))
    detail = detail_on_grid(volume(array), GRID, np.eye(4), SCALE, BRAIN)
    blocks = array.reshape(6, 2, 6, 2, 6, 2).transpose(0, 2, 4, 1, 3, 5).reshape(*GRID[1], 8)
    assert np.allclose(detail[BRAIN], blocks.std(axis=-1)[BRAIN] / 10, atol=1e-5)
    assert not detail[~BRAIN].any()


def test_uniform_tissue_has_none_and_an_edge_has_most():
    """Between two tissues the detail is half of their difference; within one it is 0."""
    array = np.zeros((12, 12, 12))
    array[5:] = 8
    detail = detail_on_grid(volume(array), GRID, np.eye(4), SCALE, BRAIN)
    assert detail[2, 2, 2] == pytest.approx(0.4, abs=1e-5)
    assert detail[1, 2, 2] == detail[3, 2, 2] == 0


def test_the_map_is_applied():
    """A shift of the image by one voxel of the grid shifts its detail."""
    array = np.random.default_rng(1).normal(size=(12, 12, 12))
    shift = np.eye(4)
    shift[0, 3] = 4
    here, moved = (detail_on_grid(volume(array), GRID, points, SCALE, BRAIN) for points in (np.eye(4), shift))
    assert np.allclose(moved[1:4, 1:5, 1:5], here[2:5, 1:5, 1:5], atol=1e-5)


def test_parts_out_of_view_do_not_count():
    """A voxel that is half in view has the deviation of that half, and one out of view none."""
    array = np.random.default_rng(2).normal(size=(9, 12, 12))
    whole, cut = (detail_on_grid(volume(part), GRID, np.eye(4), SCALE, BRAIN) for part in (array, array[:7]))
    half = array[6:7, 4:6, 4:6].std() / 10
    assert cut[3, 2, 2] == pytest.approx(half, rel=1e-4)
    assert np.array_equal(cut[:3], whole[:3])
    assert not cut[4].any()


def test_it_is_bounded():
    """Extreme intensities do not exceed the bound."""
    array = np.random.default_rng(2).normal(size=(12, 12, 12)) * 1e6
    detail = detail_on_grid(volume(array), GRID, np.eye(4), SCALE, BRAIN)
    assert np.isfinite(detail).all()
    assert detail.max() == MAX_DETAIL
