"""UsualSource: what training people have in each voxel of the source, and how far a person lies from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dualflow.flows.voxel_features import blur

SMOOTH, USUAL, SPREAD = 0.6, 0.7, 1.0
"""Smoothing of a person's source, of the mean and of the standard deviation of the training people, in voxels."""
SPREAD_FLOOR = 0.03
"""Added to the standard deviation; sources lie in 0..1."""
COMMON = 0.3
"""Share of training people whose brain mask covers a voxel before deviations count there."""


class UsualSource(nn.Module):
    """The mean and standard deviation of the training people's sources in each voxel.

    Args:
        shape: the grid, D, H, W.
        channels: channels of the source.
    """

    people: Tensor
    count: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.register_buffer("people", torch.zeros(()))
        self.register_buffer("count", torch.zeros(shape))
        self.register_buffer("first", torch.zeros(channels, *shape))
        self.register_buffer("second", torch.zeros(channels, *shape))

    def fit(self, sources: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Set the reference from training sources `[C, D, H, W]` and masks `[D, H, W]`; all scans count alike."""
        for sums in (self.people, self.count, self.first, self.second):
            sums.zero_()
        for source, inside in zip(sources, masks, strict=True):
            smooth = blur(source, SMOOTH) * inside
            self.people += 1
            self.count += inside
            self.first += smooth
            self.second += smooth.square()

    def deviation(self, source: Tensor, inside: Tensor, left_out: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """Return the deviation of each voxel in standard deviations, `[C, D, H, W]`; 0 where few people have brain.

        Args:
            source: `[C, D, H, W]`, harmonised if the training sources were.
            inside: brain mask `[D, H, W]`.
            left_out: sources and masks that the reference leaves out: of a training person, all of their own scans.
        """
        people, count, first, second = self.people, self.count, self.first, self.second
        for own_source, own_inside in left_out:
            smooth = blur(own_source, SMOOTH) * own_inside
            people, count = people - 1, count - own_inside.float()
            first, second = first - smooth, second - smooth.square()
        usual = blur(first, USUAL) / blur(count, USUAL).clamp_min(0.5)
        moments = [blur(sums, SPREAD) / blur(count, SPREAD).clamp_min(0.5) for sums in (first, second)]
        spread = (moments[1] - moments[0].square()).clamp_min(0).sqrt() + SPREAD_FLOOR
        common = inside & (count > COMMON * people) & (people > 1)
        return (blur(source, SMOOTH) * inside - usual) / spread * common
