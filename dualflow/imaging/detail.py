"""The detail of an image: how much its intensities vary within a voxel of the model grid.

A voxel of the model grid often holds several tissues. Its intensity is their mean, which a mixture of fluid and white
matter shares with pure grey matter; the detail tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dualflow.arrays import Bools, Singles
from dualflow.imaging.geometry import Affine, Grid, Volume, resample

FACTOR = 2
"""Parts of a voxel along each axis. At a quarter of a voxel the noise of the scan hides what is seen at a half."""
MAX_DETAIL = 1.0
"""Largest detail in normalised units, the range of an MR's intensities; an edge of bone or scalp can exceed it."""
_PARTS = (1, 3, 5)


def detail_on_grid(
    volume: Volume, grid: Grid, points_map: Affine, intensity: Mapping[str, Any], brain: Bools
) -> Singles:
    """Return the standard deviation of an image's intensities within each voxel of the model grid, normalised.

    It is taken over the parts of the voxel that are in view, and 0 outside the brain.

    Args:
        volume: the image, in its own space.
        grid: the model grid.
        points_map: world of the grid to world of the image.
        intensity: record of the scale by which the image is normalised.
        brain: brain mask `[D, H, W]` on the grid.
    """
    affine, (d, h, w) = grid
    to_parts = np.diag([1 / FACTOR] * 3 + [1.0])
    to_parts[:3, 3] = (1 - FACTOR) / (2 * FACTOR)  # the parts have the voxel's centre in common
    shape = (FACTOR * d, FACTOR * h, FACTOR * w)
    parts = resample(volume, affine @ to_parts, shape, points_map, background=np.nan)
    blocks = parts.reshape(d, FACTOR, h, FACTOR, w, FACTOR)
    shown = np.isfinite(blocks).sum(axis=_PARTS)
    mean = np.nansum(blocks, axis=_PARTS, keepdims=True) / np.maximum(shown, 1)[:, None, :, None, :, None]
    deviation = np.sqrt(np.nansum(np.square(blocks - mean), axis=_PARTS) / np.maximum(shown, 1)) / intensity["slope"]
    return np.where(brain, np.minimum(deviation, MAX_DETAIL), 0).astype(np.float32)
