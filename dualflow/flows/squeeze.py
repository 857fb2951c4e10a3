"""Squeezes: volume-preserving maps from one channel to eight channels at half the resolution."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from dualflow.errors import ShapeError
from dualflow.flows.bijection import Bijection, zero_log_det

BANDS = sorted(((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)), key=sum)
"""The eight corners (or wavelet bands) of a 2x2x2 block, ordered by the number of axes with detail.

The low-pass band comes first, so a split that keeps the first channels keeps the low-pass image.
"""


class Squeeze(Bijection):
    """Plain squeeze `[N, C, D, H, W] -> [N, 8C, D/2, H/2, W/2]`: a permutation, log|det| = 0."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move each 2x2x2 block into channels, in corner-major order.

        Raises:
            ShapeError: a spatial size is odd.
        """
        if any(size % 2 for size in x.shape[2:]):
            raise ShapeError(f"spatial size {tuple(x.shape[2:])} cannot be halved; pad it to even numbers")
        corners = [x[:, :, i::2, j::2, k::2] for i, j, k in BANDS]
        return torch.cat(corners, dim=1), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move the channels back into blocks.

        Raises:
            ShapeError: the channels are not a multiple of eight.
        """
        if z.shape[1] % 8:
            raise ShapeError(f"{z.shape[1]} channels cannot be unsqueezed; a squeeze makes a multiple of 8")
        x = z.new_empty(z.shape[0], z.shape[1] // 8, *(2 * size for size in z.shape[2:]))
        for corner, (i, j, k) in zip(z.chunk(8, dim=1), BANDS, strict=True):
            x[:, :, i::2, j::2, k::2] = corner
        return x, zero_log_det(z)


class HaarSqueeze(Squeeze):
    """Orthonormal 3D Haar transform, `kron(h, h, h)` with `h = [[1, 1], [1, -1]] / sqrt 2`: log|det| = 0.

    The low-pass band comes first, then the bands with detail along one, two and three axes.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squeeze, then apply a butterfly across the corners of each axis."""
        z, log_det = super().forward(x)
        return _butterflies(z), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the same butterflies, which are their own inverse, then unsqueeze."""
        return super().inverse(_butterflies(z) if z.shape[1] % 8 == 0 else z)


def _butterflies(blocks: Tensor) -> Tensor:
    """Apply h along the three axes of the 2x2x2 blocks, by additions alone, which autocast does not round."""
    parts = dict(zip(BANDS, blocks.chunk(8, dim=1), strict=True))
    for axis in range(3):
        lows = [band for band in BANDS if band[axis] == 0]
        highs = [band for band in BANDS if band[axis] == 1]
        for low, high in zip(lows, highs, strict=True):
            parts[low], parts[high] = parts[low] + parts[high], parts[low] - parts[high]
    return torch.cat([parts[band] for band in BANDS], dim=1) / sqrt(8)


SQUEEZES: dict[str, type[Squeeze]] = {"plain": Squeeze, "haar": HaarSqueeze}
