"""Calibration of a trained flow by two numbers: the gain of its voxels' spread, and that of its regions' spread.

Spreads that are fitted to few subjects are too narrow, by different factors in regions and in voxels. The gains
maximise the likelihood of people's voxels and of their region means, each as a normal number with the variance of
sampled ones. The likelihood of the image would weigh differences of neighbouring voxels, which hardly matter for an
interval; it hardly changes by this. Each voxel and each region of each person counts alike, so that the few people with
the largest errors do not decide alone.

The errors of one person are much alike, so that a few validation people tell little. The training people around their
cross-fitted means tell more, but the flow's weights have seen them. A gain is therefore shrunk in two steps: that of
the training people towards 1, and that of the validation people towards the result, by as much as chance explains.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import exp, log
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from dualflow.data.dataset import Item, PairDataset
from dualflow.digests import digest_of
from dualflow.flows.condition import Condition
from dualflow.flows.interface import SAMPLES_AT_ONCE
from dualflow.flows.model import DualFlow
from dualflow.flows.regression_scans import shown
from dualflow.flows.spread_map import VoxelSpread
from dualflow.flows.subspace_law import SubspaceLaw
from dualflow.imaging.regions import MINIMUM_SHOWN
from dualflow.training.device import device_of
from dualflow.training.fit_base import conditioned_batches, region_weights

MAX_PEOPLE = 20
"""Maximum number of people from each of validation and training; one number needs no more."""
LOG_BOUND = 0.7
"""Largest absolute logarithm of a gain."""
STEP = 0.175
"""Logarithm of the gains of regions that are sampled, relative to one between them."""
MAX_ROUNDS = 4
"""Maximum number of pairs of such gains; most need one or two."""
COSTLY = 0.02
"""Rise of the NLL, in nats per voxel, that a warning names."""
TOLERANCE = 1e-5
"""Accuracy of the logarithm of a gain."""
SAMPLES = 2 * SAMPLES_AT_ONCE
"""Samples per person and gain, from which variances are estimated."""
MIN_VARIANCE = 1e-10
"""Smallest variance of a sampled number, in squared target units; a region without a voxel has none."""
MIN_PEOPLE = 4
"""Smallest number of people who determine a gain."""


@torch.no_grad()
def calibrate(
    flow: DualFlow, validation: PairDataset, training: PairDataset, regions: Tensor | None, batch_size: int
) -> dict[str, float]:
    """Set both gains in place; return them with the NLL of the pairs (nats per voxel of the grid) before and after.

    A flow without a spread map and a base with directions is left alone, as is one without MIN_PEOPLE of validation or
    of training with cross-fitted means. Each of up to MAX_PEOPLE of both counts by one scan. The NLL is that of
    validation people, or else of training people.

    Args:
        flow: a trained flow.
        validation: pairs that trained nothing.
        training: the training pairs; those with cross-fitted means have a `mean`, and may have a `spread`.
        regions: labels `[D, H, W]` of regions, 0 elsewhere, or None.
        batch_size: scans per pass.
    """
    cross_fitted = PairDataset([item for item in training.items if "mean" in item])
    held_out, seen = (_enough(one_scan_each(each)) for each in (validation, cross_fitted))
    pairs = PairDataset(seen.items + held_out.items)
    if not len(pairs) or not has_gains(flow):
        return {}
    flow.eval()
    scored = held_out if len(held_out) else seen
    facts = {"cross_fitted": float(not len(held_out)), "nats_before": _nats(flow, scored, batch_size)}
    groups = torch.arange(len(seen)), torch.arange(len(seen), len(pairs))
    # Without a law of regions their means decide nothing, and on a fine grid the weights of all take gigabytes.
    weights = torch.zeros(1, *flow.shape, device=device_of(flow))
    if flow.base is not None:
        weights = region_weights(pairs, regions, 2**flow.spec.levels).to(weights)
        gain, moments = _fit_region_gain(flow, flow.base.law, pairs, weights, groups)
        facts["region_gain"] = gain
    else:
        moments = sampled_moments(flow, pairs, weights)
    voxel_gain = shrunk(partial(_voxel_gain, flow, moments), groups)
    facts["nats_after"] = _nats(flow, scored, batch_size, voxel_gain)
    if isinstance(flow.spread, VoxelSpread):
        flow.spread.rescale(voxel_gain)
        facts["voxel_gain"] = voxel_gain
    return facts


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


def _enough(pairs: PairDataset) -> PairDataset:
    """Return the pairs, or none if they are too few to determine a gain."""
    return pairs if len(pairs) >= MIN_PEOPLE else PairDataset([])


def warn_if_uncertain(facts: Mapping[str, float], validation: PairDataset) -> None:
    """Print a warning unless validation people calibrated the spread, within bounds; `facts` are `calibrate`'s."""
    if not facts or facts["cross_fitted"]:
        done = "calibrated on the training people alone, which the weights have seen" if facts else "not calibrated"
        people = len(set(validation.subjects))
        print(
            f"warning: {people} validation people, expected {MIN_PEOPLE} or more: the intervals are {done}; "
            "raise split.validation",
            file=sys.stderr,
        )
    for part in ("voxel", "region"):
        gain = facts.get(f"{part}_gain", 1.0)
        if abs(log(gain)) > 0.9 * LOG_BOUND:
            print(
                f"warning: calibration multiplies the spread of {part}s by {gain:.2f}, at or near its bounds of "
                f"{exp(-LOG_BOUND):.2f} and {exp(LOG_BOUND):.2f}: intervals of {part}s may remain too "
                f"{'narrow' if gain > 1 else 'wide'}; add training people, or train for more steps",
                file=sys.stderr,
            )
    if (cost := facts.get("nats_after", 0.0) - facts.get("nats_before", 0.0)) > COSTLY:
        print(
            f"warning: calibration raises the NLL by {cost:.2f} nats per voxel, expected at most {COSTLY}: what the "
            "flow learnt of single voxels and of whole regions does not agree; train for more steps, or add training "
            "people",
            file=sys.stderr,
        )


def rescaled(condition: Condition, gain: float) -> Condition:
    """Return a condition whose spread map is multiplied by a gain inside the brain."""
    return condition._replace(scale=torch.where(condition.inside, gain * condition.scale, condition.scale))


def _nats(flow: DualFlow, pairs: PairDataset, batch_size: int, gain: float = 1.0) -> float:
    """Return the NLL of pairs at a gain of the voxels' spread, in nats per voxel of the grid."""
    batches = conditioned_batches(flow, pairs, batch_size)
    log_probs = [flow.density(target, rescaled(condition, gain))[0] for target, condition in batches]
    nats: float = -torch.cat(log_probs).mean().item() / pairs[0]["target"].numel()
    return nats


class Moments(NamedTuple):
    """Squared errors of the targets of N people, and the variances of sampled targets: float64, in CPU memory.

    A likelihood is flat at its optimum: in float32, rounding would change a gain by a thousandth.

    Attributes:
        voxels: squared error over variance, mean over the brain's voxels that the target shows, `[N]`.
        errors: squared errors of the means of R regions, `[N, R]`; NaN for a region that the target does not show.
        variances: variances of sampled region means, `[N, R]`.
    """

    voxels: Tensor
    errors: Tensor
    variances: Tensor


@torch.no_grad()
def sampled_moments(flow: DualFlow, pairs: PairDataset, weights: Tensor) -> Moments:
    """Sample targets around the pairs' means and spreads, or the flow's for pairs that have none.

    Errors are those around the samples' mean, less the variance that it adds. A variance of few samples is raised so
    that its inverse is right on average. Every call draws the same noise. `weights` `[R, D, H, W]` gives region means.
    """
    rows, weights = [], weights.flatten(1)
    for index, (_, condition) in enumerate(conditioned_batches(flow, pairs, 1)):
        samples = fixed_samples(flow, condition, seed=index).flatten(1)
        target = pairs[index]["target"].to(samples.device).flatten()
        errors, variances = _errors_and_variances(target, samples)
        seen = condition.inside.cpu() & shown(pairs[index])
        voxels = (errors / variances)[seen.to(errors.device).flatten()].mean()
        # Elsewhere the target holds the mean of other people, whose error would tell nothing about this one.
        known = (shown(pairs[index]) | ~pairs[index]["mask"]).to(target).flatten()
        shares = (known @ weights.T) / (torch.ones_like(known) @ weights.T).clamp_min(1e-12)
        targets, sampled = (known * values @ weights.T / shares.clamp_min(1e-12) for values in (target, samples))
        errors, variances = _errors_and_variances(targets, sampled)
        rows.append(Moments(voxels, torch.where(shares >= MINIMUM_SHOWN, errors, torch.nan), variances))
    return Moments(*(torch.stack(part).cpu().double() for part in zip(*rows, strict=True)))


def fixed_samples(flow: DualFlow, condition: Condition, seed: int) -> Tensor:
    """Return SAMPLES targets of one scan, `[SAMPLES, D, H, W]`; a seed always gives the same noise."""
    generator = torch.Generator().manual_seed(seed)
    repeated = condition.repeat(SAMPLES_AT_ONCE)
    return torch.cat([flow.draw(repeated, 1.0, generator) for _ in range(SAMPLES // SAMPLES_AT_ONCE)])[:, 0]


def _errors_and_variances(targets: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared errors of numbers `[V]` around the mean of samples `[S, V]`, and the samples' variances."""
    variances, means = torch.var_mean(samples, dim=0)
    errors = (targets - means).square() - variances / SAMPLES
    return errors, (variances * (SAMPLES - 1) / (SAMPLES - 3)).clamp_min(MIN_VARIANCE)


def _fit_region_gain(
    flow: DualFlow, law: SubspaceLaw, pairs: PairDataset, weights: Tensor, groups: Sequence[Tensor]
) -> tuple[float, Moments]:
    """Set the gain of regions in place, the one with the largest likelihood, shrunk; return it and its moments.

    The gain of voxels scales the variances of regions too, so that each gain is tried with the best gain of voxels for
    it. Variances are nearly linear in the square of the gain, so that those of two gains give the others. While the
    result is not between the two, they are sampled again, on both sides of it.
    """
    gain = 1.0
    for _ in range(MAX_ROUNDS):
        ends = gain * exp(-STEP), gain * exp(STEP)
        moments = []
        for end in ends:
            law.gain.fill_(end)
            moments.append(sampled_moments(flow, pairs, weights))
        gain = shrunk(partial(_best_region_gain, flow, ends, moments), groups)
        if ends[0] <= gain <= ends[1]:
            break
    law.gain.fill_(gain)
    share = min(max((gain**2 - ends[0] ** 2) / (ends[1] ** 2 - ends[0] ** 2), 0.0), 1.0)
    low, high = moments
    return gain, Moments(*(torch.lerp(first, last, share) for first, last in zip(low, high, strict=True)))


def _best_region_gain(flow: DualFlow, ends: tuple[float, float], moments: Sequence[Moments], people: Tensor) -> float:
    """Return the gain with the largest likelihood of some people's region means; moments are known at two gains."""
    low, high = (_voxel_gain(flow, each, people) ** 2 * each.variances[people] for each in moments)
    errors = moments[0].errors[people]
    if bool(errors.isnan().all()):  # no target shows a whole region
        return 1.0
    # Of a variance a + b gain^2, neither part is negative, so that it can be continued beyond both gains.
    slope = torch.minimum(((high - low) / (ends[1] ** 2 - ends[0] ** 2)).clamp_min(0), high / ends[1] ** 2)
    constant = high - slope * ends[1] ** 2

    def nats(gain: float) -> float:
        variance = (constant + slope * gain**2).clamp_min(MIN_VARIANCE)
        return float((variance.log() + errors / variance).nanmean())

    return _best_gain(nats)


def _voxel_gain(flow: DualFlow, moments: Moments, people: Tensor) -> float:
    """Return the gain of some people's voxels with the largest likelihood, within bounds; 1 without a spread map."""
    if not isinstance(flow.spread, VoxelSpread):
        return 1.0
    return float(moments.voxels[people].mean().sqrt().clamp(exp(-LOG_BOUND), exp(LOG_BOUND)))


def shrunk(fit: Callable[[Tensor], float], groups: Sequence[Tensor]) -> float:
    """Return the gain of groups of people, that of each shrunk towards the one of those before it, the first's to 1.

    The distance x of two logarithms is shrunk to x max(0, 1 - (se / x)^2): the empirical Bayes estimate of a number
    with mean 0, whose variance is what x^2 is above that of its error. A group may be empty.

    Args:
        fit: the gain of the people whose indices it is given.
        groups: indices of people; the last group decides where it clearly differs.
    """
    everyone = torch.cat([*groups])
    # The jackknife's variance, which leaves out one person at a time, as a variance per person.
    without = torch.tensor([log(fit(everyone[everyone != person])) for person in everyone])
    per_person = len(everyone) * (len(everyone) - 1) * float(without.var(correction=0))
    result = 0.0
    for people in groups:
        if len(people):
            distance = log(fit(people)) - result
            variance = per_person / len(people)
            result += distance * max(0.0, 1 - variance / distance**2) if distance else 0.0
    return exp(result)


def _best_gain(loss: Callable[[float], float]) -> float:
    """Return the gain with the smallest loss, within bounds."""
    bounds, options = (-LOG_BOUND, LOG_BOUND), {"xatol": TOLERANCE}
    result = minimize_scalar(lambda log_gain: loss(exp(log_gain)), bounds=bounds, method="bounded", options=options)
    gain: float = exp(float(result.x))
    return gain
