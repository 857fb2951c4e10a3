"""VoxelScale: the size of the error in a voxel, as a function of the source."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.usual_source import UsualSource

LIMIT = 4.0
"""Largest absolute deviation from the usual source, in standard deviations."""
FEATURES = 4
"""Number of features of a voxel, per channel of the source."""


class VoxelScale(nn.Module):
    """Scale `s(z, z^2, x, x^2)` of the error in a voxel, log-linear in the source x and its deviation z from the usual.

    A voxel that is unusual, by a lesion or by atrophy, has a larger error than the same voxel of most people. Outside
    the brain, and before a fit, the scale is 1. `baselines.scale_fit` has the fit.

    Args:
        shape: the grid, D, H, W.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], source_channels: int) -> None:
        super().__init__()
        self.usual = UsualSource(shape, source_channels)
        self.scale = LogLinearScale(FEATURES * source_channels)

    def forward(self, inside: Tensor, source: Tensor) -> Tensor:
        """Return the scale `[N, 1, D, H, W]` for brain masks `[N, 1, D, H, W]` and sources `[N, C, D, H, W]`."""
        deviations = [self.usual.deviation(*scan) for scan in zip(source, inside[:, 0], strict=True)]
        return self.of(inside, source, torch.stack(deviations))

    def of(self, inside: Tensor, source: Tensor, deviation: Tensor) -> Tensor:
        """Return the scale of sources whose deviations `[N, C, D, H, W]` are known."""
        return torch.where(inside, self.scale(voxel_features(source, deviation))[:, None], 1.0)


def voxel_features(source: Tensor, deviation: Tensor) -> Tensor:
    """Return the features `[N, D, H, W, 4C]` of the voxels of sources and deviations, both `[N, C, D, H, W]`."""
    z = deviation.clamp(-LIMIT, LIMIT)
    return torch.cat([z, z.square(), source, source.square()], dim=1).movedim(1, -1)
