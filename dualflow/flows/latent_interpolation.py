"""Latents of missing voxels, interpolated from encoded neighbours with learnt weights (Mao et al. 2022, PU-Flow).

PU-Flow encodes a sparse point cloud, interpolates the latents of new points from those of their nearest neighbours, and
decodes. On a grid the sparse points are the measured voxels, and a new point is a latent whose voxels are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.bijection import upcast
from dualflow.flows.network import Convolution, RMSNorm, ZeroConv

HIDDEN = 16


class LatentInterpolation(nn.Module):
    """Interpolation of one level's standardised latents, with weights from the source features.

        e~_v = sum_k w_vk e_n(k),    w_v = softmax over the encoded ones of 27 neighbours n(k), and the prior's mean

    The prior's mean, e = 0, is a further candidate, for two reasons: a latent without an encoded neighbour has it
    alone, and independent latents, which say nothing about each other, need it. The weights start equal.

    Args:
        features: channels of the level's source features.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = Convolution(features, HIDDEN, 3)
        self.norm = RMSNorm(HIDDEN)
        self.last = ZeroConv(HIDDEN, 28, 1)

    def forward(self, e: Tensor, encoded: Tensor, features: Tensor) -> Tensor:
        """Return the latents with the missing ones interpolated, `[N, C, d, h, w]`.

        Args:
            e: standardised latents `[N, C, d, h, w]`; values that are not encoded are ignored.
            encoded: `[N, 1, d, h, w]`, bool.
            features: the level's source features `[N, F, d, h, w]`.
        """
        weights = self.weights(encoded, features).to(e.dtype)
        e = torch.where(encoded, e, 0.0)
        interpolated = torch.zeros_like(e)
        for k, neighbour in enumerate(_neighbours(e)):
            interpolated = interpolated + weights[:, k : k + 1] * neighbour
        return torch.where(encoded, e, interpolated)

    def weights(self, encoded: Tensor, features: Tensor) -> Tensor:
        """Return the weights of the neighbours and, last, of the prior's mean, `[N, 28, d, h, w]`; their sum is 1."""
        logits = upcast(self.last(self.norm(F.silu(self.conv(features)))))
        candidates = [*_neighbours(encoded), torch.ones_like(encoded)]
        return torch.softmax(logits.masked_fill(~torch.cat(candidates, dim=1), -torch.inf), dim=1)


def _neighbours(x: Tensor) -> Iterator[Tensor]:
    """Yield the 27 shifted copies of `x[N, C, D, H, W]`, 0 beyond the edge; the 14th is x itself."""
    d, h, w = x.shape[2:]
    padded = F.pad(x, (1,) * 6)
    for i, j, k in product(range(3), repeat=3):
        yield padded[:, :, i : i + d, j : j + h, k : k + w]
