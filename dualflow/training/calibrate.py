"""Calibration of a trained flow by two numbers: the gain of its voxels' spread, and that of its regions' spread.

Spreads that are fitted to few subjects are too narrow, by different factors in regions and in voxels. The gain of
voxels maximises the likelihood of held-out people. That of regions maximises the likelihood of their region means, as
normal numbers with the variance of sampled ones: the many coordinates that hardly matter for regions would decide
otherwise, and the likelihood of the image hardly changes by this. Each region of each person counts alike, so that the
few people with the largest errors do not decide alone.

A study without enough validation people calibrates on training people around their cross-fitted means. The flow's
weights have seen them, so that this corrects less than validation people do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from math import exp, log

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from dualflow.commit import digest_of
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.condition import Condition
from dualflow.flows.model import DualFlow
from dualflow.flows.spread_map import VoxelSpread
from dualflow.flows.subspace_law import SubspaceLaw
from dualflow.training.device import device_of, source_and_side
from dualflow.training.fit_base import conditioned_batches, region_weights

MAX_PEOPLE = 20
"""Maximum number of validation people; one number needs no more."""
LOG_BOUND = 0.7
"""Largest absolute logarithm of a gain."""
TOLERANCE = 0.03
"""Accuracy of the logarithm of a gain."""
SAMPLES = 16
"""Samples per person and gain, from which the variances of region means are estimated."""
MIN_VARIANCE = 1e-10
"""Smallest variance of a region mean, in squared target units; a region without a voxel has none."""
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
        facts["region_gain"] = _region_gain(flow, base.law, pairs, weights)
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


def _region_gain(flow: DualFlow, law: SubspaceLaw, pairs: PairDataset, weights: Tensor) -> float:
    """Return the gain of the law with the largest likelihood of the pairs' region means, within bounds.

    Variances are nearly linear in the square of the gain, so that those of two gains give the others; the second pair
    of gains lies close to the result of the first.
    """
    gain = 1.0
    for width in (LOG_BOUND, LOG_BOUND / 4):
        ends = gain * exp(-width), gain * exp(width)
        law.gain.fill_(ends[1])
        high = region_moments(flow, pairs, weights)[0]
        law.gain.fill_(ends[0])
        low, errors = region_moments(flow, pairs, weights)
        gain = _best_gain(partial(_region_nats, ends, (low, high), errors))
    return gain


def _region_nats(ends: tuple[float, float], variances: tuple[Tensor, Tensor], errors: Tensor, gain: float) -> float:
    """Return twice the mean negative log-likelihood of squared errors, at a gain; variances are known at two gains."""
    share = (gain**2 - ends[0] ** 2) / (ends[1] ** 2 - ends[0] ** 2)
    variance = torch.lerp(*variances, share).clamp_min(MIN_VARIANCE)
    return float((variance.log() + errors / variance).mean())


@torch.no_grad()
def region_moments(flow: DualFlow, pairs: PairDataset, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance of sampled region means, and the squared error of the targets' around the mean, `[N, R]`.

    The mean is the scan's cross-fitted one, or else the samples', less the variance that it adds. A variance of few
    samples is raised so that its inverse is right on average. Every call draws the same noise. `weights`
    `[R, D, H, W]` gives the means.
    """
    variances, errors = [], []
    for index in range(len(pairs)):
        item, generator = pairs[index], torch.Generator().manual_seed(index)
        samples = flow.sample(*source_and_side(item, flow), SAMPLES, generator=generator)[:, 0, 0]
        variance, mean = torch.var_mean(samples.flatten(1) @ weights.flatten(1).T, dim=0)
        target = weights.flatten(1) @ item["target"].to(weights.device).flatten()
        excess = variance / SAMPLES
        if "mean" in item:
            mean, excess = weights.flatten(1) @ item["mean"].to(weights.device).flatten(), torch.zeros_like(excess)
        variances.append(variance * (SAMPLES - 1) / (SAMPLES - 3))
        errors.append((target - mean).square() - excess)
    return torch.stack(variances), torch.stack(errors)


def _best_gain(loss: Callable[[float], float]) -> float:
    """Return the gain with the smallest loss, within bounds."""
    bounds, options = (-LOG_BOUND, LOG_BOUND), {"xatol": TOLERANCE}
    result = minimize_scalar(lambda log_gain: loss(exp(log_gain)), bounds=bounds, method="bounded", options=options)
    gain: float = exp(float(result.x))
    return gain
