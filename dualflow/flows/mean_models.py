"""MEANS: conditional means mu(source, side) that a flow subtracts; x - mu is a bijection with log-determinant 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.stacked_mean import StackedMean


class NoMean(nn.Module):
    """A mean of zero: the flow models the whole target.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1) -> None:
        super().__init__()

    def forward(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return zeros like a channel of the source."""
        return torch.zeros_like(source[:, :1])


def coordinates(shape: tuple[int, int, int]) -> Tensor:
    """Return the position of each voxel in -1..1 along the three axes, `[1, 3, D, H, W]`."""
    axes = [torch.linspace(-1, 1, size) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


MEANS: dict[str, type[NoMean] | type[LocalLinear] | type[StackedMean]] = {
    "none": NoMean,
    "local_linear": LocalLinear,
    "stacked": StackedMean,
}
