"""The model grid is symmetric about the midsagittal plane."""

from __future__ import annotations

import numpy as np
import pytest

from dualflow.config import PreprocessConfig
from dualflow.imaging.model_grid import model_grid


@pytest.mark.parametrize(("spacing", "shape"), [(4.0, (48, 56, 48)), (2.0, (96, 112, 96)), (3.0, (61, 72, 61))])
def test_flipping_the_first_axis_is_a_reflection(spacing, shape):
    """Voxel i and voxel D - 1 - i have opposite x and equal y and z, so a mirrored fit flips axis 0."""
    affine, size = model_grid(PreprocessConfig(spacing_mm=spacing, shape=shape))
    index = np.array([3.0, 5.0, 7.0, 1.0])
    image = index.copy()
    image[0] = size[0] - 1 - index[0]
    assert affine @ image == pytest.approx((affine @ index) * [-1, 1, 1, 1])
