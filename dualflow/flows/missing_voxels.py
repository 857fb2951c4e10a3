"""Missing voxels of a target, filled by the flow from its known voxels and its condition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.flows.condition import Condition
from dualflow.flows.latent_interpolation import LatentInterpolation
from dualflow.flows.latent_statistics import standardise
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import uniform_noise

LARGEST_SLAB = 0.5
"""Largest share of an axis that `random_slabs` hides, if it does not hide all."""


def fill_missing(flow: DualFlow, target: Tensor, known: Tensor, condition: Condition) -> Tensor:
    """Return the target with its missing voxels filled, `[N, C, D, H, W]`; gradients pass.

    The missing voxels first take their expectation, the decode at temperature 0, so that the target can be encoded. A
    latent whose block of voxels has a missing one then counts as not encoded and is interpolated. Known voxels stay.

    Args:
        flow: a flow with `interpolation_l1`.
        target: `[N, C, D, H, W]`; missing voxels may have any finite value.
        known: `[N, 1, D, H, W]`, bool.
        condition: condition of the flow.
    """
    with torch.no_grad():
        expected = flow.draw(condition, temperature=0.0)
    completed = torch.where(known, target, expected)
    latents = standardise(flow, flow.encoding(completed, condition), condition)
    for level, interpolation in enumerate(flow.interpolations):
        encoded = F.max_pool3d((~known).to(target.dtype), 2 ** (level + 1)) == 0
        assert isinstance(interpolation, LatentInterpolation)
        latents[level] = interpolation(latents[level], encoded, condition.features[level])
    return torch.where(known, target, flow.decode_standardised(latents, condition))


def random_slabs(target: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw which voxels to hide, `[N, 1, D, H, W]`, bool: with probability 1/2 all, else a slab across one axis.

    The slab lies anywhere on a random axis and has at most half of its length. It imitates a field of view that cuts
    the brain, or missing slices.
    """
    axis, share, place = uniform_noise(target.new_empty(len(target), 3), generator).T
    hidden = torch.zeros_like(target[:, :1], dtype=torch.bool)
    for number, size in enumerate(target.shape[2:]):
        thickness = torch.where(share < LARGEST_SLAB, (share * size).ceil(), float(size))
        start = (place * (size - thickness + 1)).floor()
        index = torch.arange(size, device=target.device)
        slab = (index >= start[:, None]) & (index < (start + thickness)[:, None])
        slab &= ((3 * axis).long() == number)[:, None]
        hidden |= slab.view(-1, *(size if number == other else 1 for other in range(-1, 3)))
    return hidden
