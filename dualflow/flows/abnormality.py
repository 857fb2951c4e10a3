"""Abnormality: how far a voxel of the source lies from what training people have there.

Both signs count, dark and bright: in a T1-weighted image a lesion of white matter is dark, in FLAIR it is bright.
Cross-fitting chooses which (channel, sign) pairs predict the target, and from which deviation on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from dualflow.flows.usual_source import UsualSource
from dualflow.flows.voxel_features import blur

SIGNS = (-1.0, 1.0)
"""Dark and bright."""
THRESHOLDS = (2.0, 3.0)
"""Candidate deviations, in standard deviations, at which a voxel starts to be abnormal."""
RAMP = 0.5
"""Deviations over which abnormality rises from 0 to 1."""
NEAR, AROUND, SATURATION = 0.8, 2.2, 3.0
"""Smoothing of the abnormality itself and of its surroundings, in voxels, and how fast the surroundings saturate."""


class AbnormalityRow(NamedTuple):
    """A candidate: which channels and signs count, `C` rows of dark and bright, and the threshold."""

    name: str
    selected: tuple[tuple[float, float], ...]
    threshold: float


NO_ABNORMALITY = AbnormalityRow("none", ((0.0, 0.0),), THRESHOLDS[0])
ONE_SIGN = {"dark": (1.0, 0.0), "bright": (0.0, 1.0), "both": (1.0, 1.0)}


def abnormality_rows(channels: int) -> list[AbnormalityRow]:
    """Return the candidates: each sign of each channel, both signs of each, and both of all; at every threshold."""
    rows = {
        f"{name} in channel {channel}": tuple(signs if index == channel else (0.0, 0.0) for index in range(channels))
        for channel, (name, signs) in product(range(channels), ONE_SIGN.items())
    }
    if channels > 1:
        rows["both in all channels"] = (ONE_SIGN["both"],) * channels
    return [
        AbnormalityRow(f"{name} from {threshold:g} sd", selected, threshold)
        for (name, selected), threshold in product(rows.items(), THRESHOLDS)
    ]


class Abnormality(UsualSource):
    """The abnormality of a scan: how far it lies from what is usual, in the channels and signs that count.

    Args:
        shape: the grid, D, H, W.
        channels: channels of the source.
    """

    selected: Tensor
    threshold: Tensor
    typical_load: Tensor

    def __init__(self, shape: tuple[int, int, int], channels: int) -> None:
        super().__init__(shape, channels)
        self.register_buffer("selected", torch.zeros(channels, len(SIGNS)))
        self.register_buffer("threshold", torch.tensor(THRESHOLDS[0]))
        self.register_buffer("typical_load", torch.ones(()))

    def choose(self, row: AbnormalityRow, deviations: Sequence[Tensor] = (), load: float = 1.0) -> float:
        """Select channels, signs and threshold; return the typical load of a hemisphere, in voxels.

        The typical load is the mean over `deviations` of training people, or `load` without them.
        """
        self.selected.copy_(torch.tensor(row.selected))
        self.threshold.fill_(row.threshold)
        if deviations:
            load = float(self.totals(deviations).mean()) / 2
        self.typical_load.fill_(max(load, 1.0))
        return float(self.typical_load)

    def totals(self, deviations: Sequence[Tensor]) -> Tensor:
        """Return the summed abnormality of each scan, in voxels, `[N]`."""
        return torch.stack([self.combined(one).sum() for one in deviations])

    def combined(self, deviation: Tensor) -> Tensor:
        """Return the abnormality in 0..1, `[D, H, W]`: the largest of the selected channels and signs."""
        signed = torch.stack([sign * deviation for sign in SIGNS], dim=1)
        maps = ((signed - self.threshold) / RAMP).clamp(0, 1)
        return (maps * self.selected[:, :, None, None, None]).amax(dim=(0, 1))

    def forward(self, source: Tensor, inside: Tensor) -> Tensor:
        """Return the abnormality `[D, H, W]` of a new person; arguments as `deviation`."""
        return self.combined(self.deviation(source, inside))


def surroundings(abnormal: Tensor) -> Tensor:
    """Return how much abnormal tissue lies around each voxel, saturating at 1, `[D, H, W]`."""
    return 1 - torch.exp(-SATURATION * blur(abnormal, AROUND))


def hemispheric_load(abnormal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed abnormality, in voxels, of each voxel's own and opposite hemisphere, both `[D, 1, 1]`."""
    position = torch.arange(len(abnormal), device=abnormal.device)
    left = (torch.sign((len(abnormal) - 1) / 2 - position) / 2 + 0.5)[:, None, None]
    loads = (abnormal * left).sum(), (abnormal * (1 - left)).sum()
    return left * loads[0] + (1 - left) * loads[1], left * loads[1] + (1 - left) * loads[0]
