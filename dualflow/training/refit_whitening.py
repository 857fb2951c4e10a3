"""Refit of a trained flow's whitening: one factor of the variance that distant voxels share.

Training changes what the flow adds to each scale of the field. The fine scales decide it, for they have most of the
latents. What distant voxels share then comes out too large, which the likelihood hardly feels, but the spread of voxels
and regions does. The terms of the correlation that reach furthest are therefore multiplied by the factor with the
largest likelihood of the training pairs; it is one number, so few scans determine it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.data.dataset import PairDataset
from dualflow.flows.field_whitening import FieldWhitening
from dualflow.flows.local_linear_fit import warn_at_edge
from dualflow.flows.model import DualFlow
from dualflow.flows.spread_map import VoxelSpread
from dualflow.training.calibrate import rescaled
from dualflow.training.fit_base import conditioned_batches

FACTORS = (1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
"""Factors that are compared; 1 is no change."""
FIRST_LONG = 2
"""Index of the first term that is multiplied, of the lengths 0, 1.2, 2.5 and 6 voxels."""
SCANS, BATCH = 8, 2
"""Maximum number of scans whose likelihood is compared, and scans per pass."""


@torch.no_grad()
def refit_whitening(flow: DualFlow, pairs: PairDataset) -> tuple[PairDataset, dict[str, float]]:
    """Refit the whitening of a trained flow in place; its spread map keeps the variance that near voxels share.

    Args:
        flow: a trained flow.
        pairs: training pairs, with cross-fitted means and spreads if mean and spread have them.

    Returns:
        The pairs, with spreads that follow the map, and the `long_terms` factor. Pairs as they are and no facts for a
        flow without a whitening of distant voxels or without a spread map.
    """
    whitening = flow.whitening
    if whitening is None or not isinstance(flow.spread, VoxelSpread) or not whitening.shares[FIRST_LONG:].any():
        return pairs, {}
    flow.eval()
    shares = whitening.shares.clone()
    # Without the weights, which are the largest part and differ between the factors.
    conditioned = conditioned_batches(flow, pairs.spaced(SCANS), BATCH)
    batches = [(target, condition._replace(whitening=None)) for target, condition in conditioned]

    def log_prob(factor: float) -> float:
        gain, total = set_long_terms(whitening, shares, factor), 0.0
        for target, condition in batches:
            weights = whitening.weights(condition.inside)
            density = flow.density(target, rescaled(condition, gain)._replace(whitening=weights))[0]
            total += float(density.double().sum())
        return total

    factor = max(FACTORS, key=log_prob)
    warn_at_edge("the factor of the correlation of distant voxels", factor, FACTORS)
    gain = set_long_terms(whitening, shares, factor)
    flow.spread.rescale(gain)
    return pairs.with_scaled_spreads(gain), {"long_terms": factor}


def set_long_terms(whitening: FieldWhitening, shares: Tensor, factor: float) -> float:
    """Set shares whose long terms are multiplied; return the square root of the variance that they sum to."""
    scaled = torch.cat([shares[:FIRST_LONG], factor * shares[FIRST_LONG:]])
    whitening.set_correlation(scaled / scaled.sum())
    return float(scaled.sum().sqrt())
