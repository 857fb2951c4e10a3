"""PersonFeatures: a few numbers of each person, from side information, tissue and the source's coarsest features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import upcast
from dualflow.flows.mean_models import known_side
from dualflow.flows.voxel_features import TISSUE_CENTRES, foreground, soft_tissue

COMPONENTS = 4
"""Number of principal components of the source's features."""
LIMIT = 3.0
"""Largest absolute standardised feature: a person beyond the training range counts as its edge."""


class PersonFeatures(nn.Module):
    """Standardised features of a person `[N, F]`: side values with a flag each, tissue, and principal components.

    Tissue fractions and the brain's volume measure atrophy.
    The components are those of the source's coarsest features over training people. With a Glow source they are latents
    of the source, so they link the spread of the target's regions to the source's flow. Before `fit` they are 0.

    Args:
        side_features: number S of side values.
        source_channels: channels of the source.
        source_size: number of the source's coarsest features: channels times voxels.
    """

    axes: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, side_features: int, source_channels: int, source_size: int) -> None:
        super().__init__()
        self.side_features = side_features
        self.count = 2 * side_features + tissue_count(source_channels) + COMPONENTS
        self.register_buffer("axes", torch.zeros(COMPONENTS, source_size))
        self.register_buffer("centre", torch.zeros(self.count))
        self.register_buffer("scale", torch.ones(self.count))

    def forward(self, side: Tensor | None, tissue: Tensor, features: Tensor) -> Tensor:
        """Return the features `[N, F]`.

        Args:
            side: side values `[N, S]`, NaN where unknown; None if all is.
            tissue: `tissue_fractions` of the source.
            features: coarsest features of the source, `[N, C, d, h, w]`.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            return ((self._raw(side, tissue, features) - self.centre) / self.scale).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def fit(self, sides: Tensor, tissue: Tensor, features: Tensor) -> None:
        """Set components and standardisation from training people, with the arguments of `forward`."""
        flat = upcast(features).flatten(1)
        centred = flat - flat.mean(0)
        # The N x N matrix of inner products has the eigenvalues of the covariance.
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        count = min(COMPONENTS, len(flat) - 1)
        weights = vectors[:, -count:].flip(1) / values[-count:].flip(0).clamp_min(1e-12).sqrt()
        self.axes.zero_()[:count] = weights.T @ centred
        self.centre[: self.side_features] = sides.nanmean(0).nan_to_num()
        raw = self._raw(sides, tissue, features)
        spread = raw.std(0, unbiased=False)
        self.centre.copy_(raw.mean(0))
        # A constant feature, such as the flag of a column without missing values, stays at 0.
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def _raw(self, side: Tensor | None, tissue: Tensor, features: Tensor) -> Tensor:
        flat = upcast(features).flatten(1)
        values, flags = upcast(known_side(side, features, self.side_features)).chunk(2, dim=1)
        # An unknown value counts as the training people's mean, not as a value of 0.
        values = torch.where(flags > 0, values, self.centre[: self.side_features])
        return torch.cat([values, flags, tissue.to(flat.dtype), flat @ self.axes.T], dim=1)


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
    sums = soft_tissue(source).flatten(2) @ brain.flatten(2).mT
    return torch.cat([sums[:, :, 0] / volume[:, None], volume.log()[:, None]], dim=1)


def tissue_count(source_channels: int) -> int:
    """Return the number of values of `tissue_fractions`."""
    return len(TISSUE_CENTRES) * source_channels + 1
