"""The spread of a trained flow, held against people that it has not seen.

Maximum likelihood on few people does not settle it: what a low-rank covariance loses in directions that no training
person has, it makes up for by being too wide in the others, and its likelihood hardly tells.
"""

from __future__ import annotations

import torch

from dualflow.data.dataset import PairDataset
from dualflow.flows.base_distributions import LowRankGaussian
from dualflow.flows.model import DualFlow
from dualflow.flows.prior import LevelPrior
from dualflow.training.device import source_and_side

SAMPLES = 8
MOST = 64
"""Scans that are looked at: more would not change a single number."""
BOUNDS = (0.5, 2.0)
_TRIED = 0.5


@torch.no_grad()
def calibrate(flow: DualFlow, validation: PairDataset, seed: int) -> float | None:
    """Scale the low-rank base, in place, until samples vary as much as validation targets differ from their mean.

        s^2:  sum of var(samples) (1 + 1/K) = sum of (target - mean of K samples)^2,  over the voxels of all masks

    Density and samples stay those of one law. The left side is measured at two scales and taken as linear in s^2.

    Returns:
        s; None where the flow has no such base or there is nobody to look at.
    """
    prior = flow.priors[-1]
    assert isinstance(prior, LevelPrior)
    if not isinstance(prior.base, LowRankGaussian) or not len(validation):
        return None
    flow.eval()
    whole = _variance_ratio(flow, validation, seed)
    prior.base.rescale(_TRIED)
    part = _variance_ratio(flow, validation, seed)
    slope = (whole - part) / (1 - _TRIED**2)
    low, high = BOUNDS
    squared = (1 - (whole - slope)) / slope if slope > 0 else 1.0
    scale = min(max(squared, low**2), high**2) ** 0.5
    prior.base.rescale(scale / _TRIED)
    return float(scale)


def _variance_ratio(flow: DualFlow, pairs: PairDataset, seed: int) -> float:
    """Variance that samples have, over that of the targets about the samples' mean."""
    predicted = found = 0.0
    for index in range(min(len(pairs), MOST)):
        item, generator = pairs[index], torch.Generator().manual_seed(seed + index)
        drawn = flow.sample(*source_and_side(item, flow), SAMPLES, generator=generator)[:, 0].double().cpu()
        variance, mean = torch.var_mean(drawn, dim=0)
        predicted += float(((1 + 1 / SAMPLES) * variance * item["mask"]).sum())
        found += float(((item["target"] - mean).square() * item["mask"]).sum())
    return predicted / found
