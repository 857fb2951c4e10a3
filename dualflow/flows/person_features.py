"""PersonFeatures: a few numbers of each person, from side information and tissue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.voxel_features import TISSUE_CENTRES, foreground, soft_tissue

LIMIT = 3.0
"""Largest absolute standardised feature: a person beyond the training range counts as its edge."""


class PersonFeatures(nn.Module):
    """Standardised features of a person `[N, P]`: the `person_values` less their mean, in standard deviations.

    An unknown value counts as the training people's mean. Before `fit` the mean is 0 and the deviation 1.

    Args:
        side_features: number S of side values.
        source_channels: channels C of the source.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, side_features: int, source_channels: int) -> None:
        super().__init__()
        self.count = person_count(side_features, source_channels)
        self.register_buffer("centre", torch.zeros(self.count))
        self.register_buffer("scale", torch.ones(self.count))

    def forward(self, values: Tensor) -> Tensor:
        """Return the features of `person_values` `[N, P]`."""
        return ((values - self.centre) / self.scale).nan_to_num().clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Set the standardisation from the `person_values` `[N, P]` of training people."""
        self.centre.copy_(values.nanmean(0).nan_to_num())
        spread = (values - self.centre).square().nanmean(0).sqrt().nan_to_num()
        # A value that all people share stays at 0.
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))


def person_values(source: Tensor, side: Tensor) -> Tensor:
    """Return the values `[N, S + 6C + 1]` that the size of a person's errors may depend on: side values and tissue.

    Args:
        source: `[N, C, D, H, W]`.
        side: `[N, S]`, NaN where unknown, and then NaN in the result.
    """
    return torch.cat([side.to(source.dtype), tissue_fractions(source)], dim=1)


def person_count(side_features: int, source_channels: int) -> int:
    """Return the number of values of `person_values`."""
    return side_features + tissue_count(source_channels)


@torch.no_grad()
def tissue_fractions(source: Tensor) -> Tensor:
    """Return the share of each soft tissue class in the brain and the log of its volume, `[N, 6C + 1]`.

    Args:
        source: `[N, C, D, H, W]`.
    """
    brain = foreground(source).to(source.dtype)
    volume = brain.sum(dim=(1, 2, 3, 4)).clamp_min(1)
    with torch.autocast(source.device.type, enabled=False):
        sums = soft_tissue(source).flatten(2) @ brain.flatten(2).mT
    return torch.cat([sums[:, :, 0] / volume[:, None], volume.log()[:, None]], dim=1)


def tissue_count(source_channels: int) -> int:
    """Return the number of values of `tissue_fractions`."""
    return len(TISSUE_CENTRES) * source_channels + 1
