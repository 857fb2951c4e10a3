"""Calibration of a trained flow's spread on held-out scans.

Maximum likelihood on few subjects does not determine the spread: a low-rank covariance is too wide in some directions
to compensate for directions that no training subject has, and the likelihood barely changes.
"""

from __future__ import annotations

import torch

from dualflow.data.dataset import PairDataset
from dualflow.flows.base_distributions import LowRankGaussian
from dualflow.flows.model import DualFlow
from dualflow.training.device import source_and_side

SAMPLES = 8
MAX_SCANS = 64
"""Maximum number of validation scans; a single factor needs no more."""
BOUNDS = (0.5, 2.0)
"""Smallest and largest scale."""
_TRIAL = 0.5


@torch.no_grad()
def calibrate(flow: DualFlow, validation: PairDataset, seed: int) -> float | None:
    """Scale the low-rank base in place so that the variance of samples matches that of validation targets.

        s^2:  sum of var(samples) (1 + 1/K) = sum of (target - mean of K samples)^2,  over the voxels of all masks

    Density and samples remain consistent. The left side is measured at two scales and is linear in s^2.

    Returns:
        s; None if the flow has no low-rank base, or without validation scans.
    """
    base = flow.prior(flow.spec.levels - 1).base
    if not isinstance(base, LowRankGaussian) or not len(validation):
        return None
    flow.eval()
    ratio = _variance_ratio(flow, validation, seed)
    base.rescale(_TRIAL)
    trial_ratio = _variance_ratio(flow, validation, seed)
    slope = (ratio - trial_ratio) / (1 - _TRIAL**2)
    low, high = BOUNDS
    squared = (1 - (ratio - slope)) / slope if slope > 0 else 1.0
    scale = min(max(squared, low**2), high**2) ** 0.5
    base.rescale(scale / _TRIAL)
    return float(scale)


def _variance_ratio(flow: DualFlow, pairs: PairDataset, seed: int) -> float:
    """Variance of the samples, divided by that of the targets around the samples' mean."""
    predicted = observed = 0.0
    for index in range(min(len(pairs), MAX_SCANS)):
        item, generator = pairs[index], torch.Generator().manual_seed(seed + index)
        samples = flow.sample(*source_and_side(item, flow), SAMPLES, generator=generator)[:, 0].double().cpu()
        variance, mean = torch.var_mean(samples, dim=0)
        predicted += float(((1 + 1 / SAMPLES) * variance * item["mask"]).sum())
        observed += float(((item["target"] - mean).square() * item["mask"]).sum())
    return predicted / observed
