"""Calibration of a trained flow by two numbers: the gain of its voxels' spread, and that of its regions' spread.

Few subjects do not determine a spread: that of the training residuals is too narrow, and regions need another
correction than voxels. Both numbers maximise the likelihood of held-out people, so neither can cost likelihood there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import torch
from scipy.optimize import minimize_scalar

from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import EVALUATION_SEED
from dualflow.flows.spread_map import VoxelSpread
from dualflow.training.device import device_of
from dualflow.training.fit_base import coarsest_base, coarsest_latents

MAX_SCANS = 24
"""Maximum number of validation scans; one number needs no more."""
LOG_BOUND = 0.7
"""Largest absolute logarithm of a gain."""
TOLERANCE = 0.02
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
    flow.eval()

    def nats() -> float:
        return mean_nll(flow, pairs, batch_size)

    facts = {"nats_before": nats()}
    if isinstance(spread, VoxelSpread):
        image = spread.image.clone()

        def voxel_loss(log_gain: float) -> float:
            spread.image.copy_(image * exp(log_gain))
            return nats()

        facts["voxel_gain"] = exp(_minimum(voxel_loss))
        spread.image.copy_(image * facts["voxel_gain"])
    if base is not None and flow.person is not None:
        latents, sides, features = coarsest_latents(flow, pairs)
        t, person = base.coordinates(latents), flow.person(sides, features)

        def region_loss(log_gain: float) -> float:
            base.law.gain.fill_(exp(log_gain))
            return -float(base.law.log_prob(t, person).mean())

        facts["region_gain"] = exp(_minimum(region_loss))
        base.law.gain.fill_(facts["region_gain"])
    return facts | {"nats_after": nats()}


@torch.no_grad()
def mean_nll(flow: DualFlow, pairs: PairDataset, batch_size: int) -> float:
    """Return the mean NLL of the pairs, nats per voxel of the grid; every call fills the background alike."""
    total, device = 0.0, device_of(flow)
    for start in range(0, len(pairs), batch_size):
        batch = collate([pairs[index] for index in range(start, min(start + batch_size, len(pairs)))])
        target, source, side, mask = (batch[name].to(device) for name in ("target", "source", "side", "mask"))
        generator = torch.Generator().manual_seed(EVALUATION_SEED + start)
        target = prepare_target(target, mask, flow.spec, generator)
        total -= float(flow.density(target, flow.condition(source, side))[0].sum()) / target[0].numel()
    return total / len(pairs)


def _minimum(loss: Callable[[float], float]) -> float:
    """Return the argument of the minimum within the bounds."""
    result = minimize_scalar(loss, bounds=(-LOG_BOUND, LOG_BOUND), method="bounded", options={"xatol": TOLERANCE})
    return float(result.x)
