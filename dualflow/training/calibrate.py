"""Calibration of a trained flow by two numbers: the gain of its voxels' spread, and that of its regions' spread.

Few subjects do not determine a spread: that of the training residuals is too narrow, and regions need another
correction than voxels. The gain of voxels maximises the likelihood of held-out people. That of regions matches the
variance of sampled region means with the errors of held-out people: the likelihood of the many coordinates that hardly
matter for regions would decide otherwise, and hardly changes by this.

A study without enough validation people calibrates on training people around their cross-fitted means. The flow's
weights have seen them, so that this corrects less than validation people do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from math import exp, log, sqrt

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from dualflow.commit import digest_of
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.condition import Condition
from dualflow.flows.model import DualFlow
from dualflow.flows.spread_map import VoxelSpread
from dualflow.training.device import device_of, source_and_side
from dualflow.training.fit_base import conditioned_batches, region_weights

MAX_PEOPLE = 20
"""Maximum number of validation people; one number needs no more."""
LOG_BOUND = 0.7
"""Largest absolute logarithm of a gain."""
TOLERANCE = 0.03
"""Accuracy of the logarithm of a gain."""
SAMPLES = 8
MIN_PEOPLE = 4
"""Smallest number of validation people who determine a gain."""


@torch.no_grad()
def calibrate(
    flow: DualFlow, validation: PairDataset, training: PairDataset, regions: Tensor | None, batch_size: int
) -> dict[str, float]:
    """Set both gains in place; return them with the NLL of the pairs (nats per voxel of the grid) before and after.

    A flow without a spread map and a base with directions is left alone, as is one without enough people: MIN_PEOPLE
    of `validation`, or else of `training` with cross-fitted means. Each of up to MAX_PEOPLE counts by one scan.

    Args:
        flow: a trained flow.
        validation: pairs that trained nothing.
        training: the training pairs; those with cross-fitted means have a `mean`, and may have a `spread`.
        regions: labels `[D, H, W]` of regions, 0 elsewhere, or None.
        batch_size: scans per pass.
    """
    base, spread = flow.base, flow.spread
    pairs = one_scan_each(validation)
    if cross_fitted := len(pairs) < MIN_PEOPLE:
        pairs = one_scan_each(PairDataset([item for item in training.items if "mean" in item]))
    if len(pairs) < MIN_PEOPLE or not has_gains(flow):
        return {}
    # The source is encoded once; only what the gains change is computed again.
    batches = list(conditioned_batches(flow.eval(), pairs, batch_size))

    def nats(gain: float = 1.0) -> float:
        log_probs = [flow.density(target, rescaled(condition, gain))[0] for target, condition in batches]
        return -float(torch.cat(log_probs).mean()) / batches[0][0][0].numel()

    facts, voxel_gain = {"cross_fitted": float(cross_fitted), "nats_before": nats()}, 1.0
    if isinstance(spread, VoxelSpread):
        facts["voxel_gain"] = voxel_gain = _best_gain(nats)
        spread.rescale(voxel_gain)
    if base is not None:
        weights = region_weights(pairs, regions, 2**flow.spec.levels).to(device_of(flow))

        def ratio(gain: float) -> float:
            base.law.gain.fill_(gain)
            return variance_ratio(flow, pairs, weights)

        facts["region_gain"] = _matching_gain(ratio)
        base.law.gain.fill_(facts["region_gain"])
    return facts | {"nats_after": nats(voxel_gain)}


def has_gains(flow: DualFlow) -> bool:
    """Whether a flow has a spread that calibration can scale: a map of it, or a law of directions."""
    return flow.base is not None or isinstance(flow.spread, VoxelSpread)


def one_scan_each(pairs: PairDataset) -> PairDataset:
    """The first scan of each of at most MAX_PEOPLE people, chosen by a hash, for labels often tell site or period."""
    first = dict[str, Item]()
    for subject, item in zip(pairs.subjects, pairs.items, strict=True):
        first.setdefault(subject, item)
    chosen = set(sorted(first, key=digest_of)[:MAX_PEOPLE])
    return PairDataset([item for subject, item in first.items() if subject in chosen])


def warn_if_uncertain(facts: Mapping[str, float], validation: PairDataset) -> None:
    """Print a warning unless validation people calibrated the spread, within bounds; `facts` are `calibrate`'s."""
    if not facts or facts["cross_fitted"]:
        done = "calibrated on the training people, which is less certain" if facts else "not calibrated"
        people = len(set(validation.subjects))
        print(
            f"warning: {people} validation people, expected {MIN_PEOPLE} or more: the intervals are {done}; "
            "raise split.validation",
            file=sys.stderr,
        )
    for part in ("voxel", "region"):
        gain = facts.get(f"{part}_gain", 1.0)
        if (size := abs(log(gain))) > LOG_BOUND - 2 * TOLERANCE:
            print(
                f"warning: the spread of {part}s is off by a factor of {exp(size):.1f} or more, the most that "
                f"calibration corrects: intervals of {part}s will be too {'narrow' if gain > 1 else 'wide'}; "
                "add training people, or choose mean: stacked",
                file=sys.stderr,
            )


def rescaled(condition: Condition, gain: float) -> Condition:
    """Return a condition whose spread map is multiplied by a gain inside the brain."""
    return condition._replace(scale=torch.where(condition.inside, gain * condition.scale, condition.scale))


@torch.no_grad()
def variance_ratio(flow: DualFlow, pairs: PairDataset, weights: Tensor) -> float:
    """Return the variance of sampled region means over that of the targets' around the mean.

    The mean is the scan's cross-fitted one, or else the samples', less the variance that it adds. Every call draws the
    same noise. `weights` `[R, D, H, W]` gives the means.
    """
    predicted = observed = 0.0
    for index in range(len(pairs)):
        item, generator = pairs[index], torch.Generator().manual_seed(index)
        samples = flow.sample(*source_and_side(item, flow), SAMPLES, generator=generator)[:, 0, 0]
        variance, mean = torch.var_mean(samples.flatten(1) @ weights.flatten(1).T, dim=0)
        target = weights.flatten(1) @ item["target"].to(weights.device).flatten()
        excess = variance / SAMPLES
        if "mean" in item:
            mean, excess = weights.flatten(1) @ item["mean"].to(weights.device).flatten(), torch.zeros_like(excess)
        predicted += float(variance.sum())
        observed += float(((target - mean).square() - excess).sum())
    return predicted / max(observed, 1e-12)


def _matching_gain(ratio: Callable[[float], float]) -> float:
    """Return the gain at which a ratio that rises with it is 1, or the bound that comes closest.

    The ratio is nearly linear in the square of the gain, so that the search there takes few steps.
    """

    @cache
    def excess(square: float) -> float:
        return ratio(sqrt(square)) - 1

    lowest, highest = exp(-2 * LOG_BOUND), exp(2 * LOG_BOUND)
    if excess(lowest) >= 0:
        return sqrt(lowest)
    if excess(highest) <= 0:
        return sqrt(highest)
    return sqrt(float(brentq(excess, lowest, highest, xtol=1e-3, rtol=2 * TOLERANCE)))


def _best_gain(loss: Callable[[float], float]) -> float:
    """Return the gain with the smallest loss, within bounds."""
    bounds, options = (-LOG_BOUND, LOG_BOUND), {"xatol": TOLERANCE}
    result = minimize_scalar(lambda log_gain: loss(exp(log_gain)), bounds=bounds, method="bounded", options=options)
    gain: float = exp(float(result.x))
    return gain
