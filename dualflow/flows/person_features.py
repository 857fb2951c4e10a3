"""PersonFeatures: a few numbers of each person, from side information and the source's coarsest features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import upcast
from dualflow.flows.mean_models import known_side

COMPONENTS = 4
"""Number of principal components of the source's features."""
LIMIT = 3.0
"""Largest absolute standardised feature: a person beyond the training range counts as its edge."""


class PersonFeatures(nn.Module):
    """Standardised features of a person `[N, F]`: side values with a flag each, and principal components.

    The components are those of the source's coarsest features over training people. With a Glow source they are latents
    of the source, so they link the spread of the target's regions to the source's flow. Before `fit` they are 0.

    Args:
        side_features: number S of side values.
        source_size: number of the source's coarsest features: channels times voxels.
    """

    axes: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, side_features: int, source_size: int) -> None:
        super().__init__()
        self.side_features = side_features
        self.count = 2 * side_features + COMPONENTS
        self.register_buffer("axes", torch.zeros(COMPONENTS, source_size))
        self.register_buffer("centre", torch.zeros(self.count))
        self.register_buffer("scale", torch.ones(self.count))

    def forward(self, side: Tensor | None, features: Tensor) -> Tensor:
        """Return `[N, F]` from side values `[N, S]` (NaN where unknown) and source features `[N, C, d, h, w]`."""
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            return ((self._raw(side, features) - self.centre) / self.scale).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def fit(self, sides: Tensor, features: Tensor) -> None:
        """Set components and standardisation from training people, with the arguments of `forward`."""
        flat = upcast(features).flatten(1)
        centred = flat - flat.mean(0)
        # The N x N matrix of inner products has the eigenvalues of the covariance.
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        count = min(COMPONENTS, len(flat) - 1)
        weights = vectors[:, -count:].flip(1) / values[-count:].flip(0).clamp_min(1e-12).sqrt()
        self.axes.zero_()[:count] = weights.T @ centred
        raw = self._raw(sides, features)
        spread = raw.std(0, unbiased=False)
        self.centre.copy_(raw.mean(0))
        # A constant feature, such as the flag of a column without missing values, stays at 0.
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def _raw(self, side: Tensor | None, features: Tensor) -> Tensor:
        flat = upcast(features).flatten(1)
        return torch.cat([upcast(known_side(side, features, self.side_features)), flat @ self.axes.T], dim=1)
