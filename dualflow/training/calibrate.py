"""Calibration of a trained flow by two numbers: the gain of its voxels' spread, and that of its regions' spread.

Few subjects do not determine a spread: that of the training residuals is too narrow, and regions need another
correction than voxels. Both numbers maximise the likelihood of held-out people, so neither can cost likelihood there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import torch
from scipy.optimize import minimize_scalar

from dualflow.data.dataset import PairDataset
from dualflow.flows.condition import Condition
from dualflow.flows.model import DualFlow
from dualflow.flows.spread_map import VoxelSpread
from dualflow.training.fit_base import coarsest_base, coarsest_latents, conditioned_batches

MAX_SCANS = 20
"""Maximum number of validation scans; one number needs no more."""
LOG_BOUND = 0.7
"""Largest absolute logarithm of a gain."""
TOLERANCE = 0.03
MIN_PEOPLE = 4
"""Smallest number of validation scans that determine a gain."""


@torch.no_grad()
def calibrate(flow: DualFlow, validation: PairDataset, batch_size: int) -> dict[str, float]:
    """Set both gains in place; return them with the validation NLL (nats per voxel of the grid) before and after.

    Without enough validation scans, or for a flow without a spread map and a base with directions, nothing changes.
    """
    base, spread = coarsest_base(flow), flow.spread
    pairs = PairDataset(validation.items[:MAX_SCANS])
    if len(pairs) < MIN_PEOPLE or not (base is not None or isinstance(spread, VoxelSpread)):
        return {}
    # The source is encoded once; only what the gains change is computed again.
    batches = list(conditioned_batches(flow.eval(), pairs, batch_size))

    def nats(gain: float = 1.0) -> float:
        log_probs = [flow.density(target, rescaled(condition, gain))[0] for target, condition in batches]
        return -float(torch.cat(log_probs).mean()) / batches[0][0][0].numel()

    facts, voxel_gain = {"nats_before": nats()}, 1.0
    if isinstance(spread, VoxelSpread):
        facts["voxel_gain"] = voxel_gain = _best_gain(nats)
        spread.rescale(voxel_gain)
    if base is not None:
        t = torch.cat([
            base.coordinates(coarsest_latents(flow, target, rescaled(condition, voxel_gain)))
            for target, condition in batches
        ])  # fmt: skip
        person = torch.cat([condition.person for _, condition in batches if condition.person is not None])

        def region_nats(gain: float) -> float:
            base.law.gain.fill_(gain)
            return -float(base.law.log_prob(t, person).mean())

        facts["region_gain"] = _best_gain(region_nats)
        base.law.gain.fill_(facts["region_gain"])
    return facts | {"nats_after": nats(voxel_gain)}


def rescaled(condition: Condition, gain: float) -> Condition:
    """Return a condition whose spread map is multiplied by a gain inside the brain."""
    return condition._replace(scale=torch.where(condition.inside, gain * condition.scale, condition.scale))


def _best_gain(loss: Callable[[float], float]) -> float:
    """Return the gain with the smallest loss, within bounds."""
    bounds, options = (-LOG_BOUND, LOG_BOUND), {"xatol": TOLERANCE}
    result = minimize_scalar(lambda log_gain: loss(exp(log_gain)), bounds=bounds, method="bounded", options=options)
    gain: float = exp(float(result.x))
    return gain
