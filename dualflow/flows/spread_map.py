"""The unit of a target's residual inside a flow, constant or a map; the division is an exact bijection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.voxel_features import blur

SMOOTHING = 1.0
"""Standard deviation of the smoothing of the squared residuals, voxels."""
MIN_SPREAD = 0.2
"""Smallest spread of a voxel, relative to the brain's median."""


class ConstantSpread(nn.Module):
    """One unit for all voxels.

    Args:
        shape: the grid, D, H, W.
        scale: the unit, in target units.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], scale: float, side_features: int, source_channels: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inside: Tensor, source: Tensor, side: Tensor) -> Tensor:
        """Return the unit of the residual of each voxel, `[N, 1, D, H, W]`.

        Args:
            inside: brain masks, bool, `[N, 1, D, H, W]`.
            source: `[N, C, D, H, W]`.
            side: `[N, S]`, NaN where unknown.
        """
        return torch.full(inside.shape, self.scale, device=inside.device)


class VoxelSpread(ConstantSpread):
    """The standard deviation of the training residuals in each voxel of the brain mask; the constant unit outside."""

    image: Tensor

    def __init__(self, shape: tuple[int, int, int], scale: float, side_features: int, source_channels: int) -> None:
        super().__init__(shape, scale, side_features, source_channels)
        self.register_buffer("image", torch.full((1, *shape), scale))

    def forward(self, inside: Tensor, source: Tensor, side: Tensor) -> Tensor:
        """Return the unit of the residual of each voxel, `[N, 1, D, H, W]`."""
        return torch.where(inside, self.image, self.scale)

    @torch.no_grad()
    def fit(self, squares: Tensor, counts: Tensor) -> None:
        """Set the map from sums over training scans, both `[1, D, H, W]`: of squared residuals, and of masks."""
        weight = blur(counts.float(), SMOOTHING)
        variance = blur(squares.float(), SMOOTHING) / weight.clamp_min(1e-3)
        spread = variance.clamp_min(0).sqrt()
        median = spread[counts > 0].median()
        # Voxels of few masks take the median.
        self.image.copy_(torch.where(weight > 0.5, spread.clamp_min(MIN_SPREAD * median), median))

    @torch.no_grad()
    def rescale(self, gain: float | Tensor) -> None:
        """Multiply the map by a gain, one number or one per voxel."""
        self.image.mul_(gain)
