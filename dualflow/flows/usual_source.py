"""UsualSource: what training people have in each voxel of the source, and how far a person lies from it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from dualflow.flows.voxel_features import blur

SMOOTH, USUAL, SPREAD = 0.6, 0.7, 1.0
"""Smoothing of a person's source, of the mean and of the standard deviation of the training people, in voxels."""
SPREAD_FLOOR = 0.03
"""Added to the standard deviation; sources lie in 0..1."""
COMMON = 0.3
"""Share of training people whose brain mask covers a voxel before deviations count there."""


MaskedSource = tuple[Tensor, Tensor]
"""Source `[C, D, H, W]` and brain mask `[D, H, W]`."""


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

    def fit(self, scans: Iterable[MaskedSource]) -> None:
        """Set the reference from training scans, all of which count alike."""
        for sums in (self.people, self.count, self.first, self.second):
            sums.zero_()
        self._add(scans)

    def without(self, scans: Iterable[MaskedSource]) -> UsualSource:
        """Return the reference without some of its scans."""
        rest = UsualSource((self.count.shape[0], self.count.shape[1], self.count.shape[2]), len(self.first))
        rest = rest.to(self.first)
        for name in ("people", "count", "first", "second"):
            getattr(rest, name).copy_(getattr(self, name))
        rest._add(scans, -1.0)
        return rest

    def deviation(self, source: Tensor, inside: Tensor) -> Tensor:
        """Return the deviation of each voxel in standard deviations, `[C, D, H, W]`; 0 where few people have brain.

        Args:
            source: `[C, D, H, W]`, harmonised if the training sources were.
            inside: brain mask `[D, H, W]`.
        """
        usual = blur(self.first, USUAL) / blur(self.count, USUAL).clamp_min(0.5)
        moments = [blur(sums, SPREAD) / blur(self.count, SPREAD).clamp_min(0.5) for sums in (self.first, self.second)]
        spread = (moments[1] - moments[0].square()).clamp_min(0).sqrt() + SPREAD_FLOOR
        common = inside & (self.count > COMMON * self.people) & (self.people > 1)
        return (blur(source, SMOOTH) * inside - usual) / spread * common

    def _add(self, scans: Iterable[MaskedSource], sign: float = 1.0) -> None:
        for source, inside in scans:
            smooth = blur(source, SMOOTH) * inside
            self.people += sign
            self.count += sign * inside
            self.first += sign * smooth
            self.second += sign * smooth.square()


def deviations_from_others(
    usual: UsualSource, scans: Sequence[MaskedSource], groups: Sequence[Hashable]
) -> Iterator[Tensor]:
    """Yield the deviation of each training scan from the scans of other groups, `[C, D, H, W]`.

    From a mean that contains them, training people would look more usual than new people do.

    Args:
        usual: the reference of these scans.
        scans: sources and brain masks.
        groups: group of each scan, such as its person.
    """
    members: dict[Hashable, list[MaskedSource]] = {}
    for group, scan in zip(groups, scans, strict=True):
        members.setdefault(group, []).append(scan)

    @lru_cache(maxsize=8)  # a group is a person with some scans in a row, or one of a few folds
    def others(group: Hashable) -> UsualSource:
        return usual.without(members[group])

    for group, scan in zip(groups, scans, strict=True):
        yield others(group).deviation(*scan)
