"""Likelihood of held-out targets under a flow: nats inside the mask, under true, wrong and blurred sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log, pi, sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dualflow.data.dataset import Item
from dualflow.data.unseen_voxels import scored
from dualflow.evaluation.annealing import anneal
from dualflow.flows.condition import Condition
from dualflow.flows.diagnostics import explained_variance
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import standard_noise, uniform_noise
from dualflow.flows.spec import FlowSpec
from dualflow.inference.convert import nearest_inside
from dualflow.layout import Scan
from dualflow.training.device import device_of

Density = Callable[[Tensor], Tensor]
"""Maps volumes `[N, C, D, H, W]` to log-densities `[N]` in nats."""

BLUR_MM = 8.0
"""Standard deviation of the blur, which removes cortical contrast and keeps the outline and large structures."""
BATCH = 8
"""Volumes per pass through a flow."""
FURTHER_GAIN = 1 / (sqrt(2) - 1)
"""What infinitely many further annealing steps gain, relative to the last doubling, if the excess of the bound falls
with the square root of their number; less if it falls faster."""


@torch.no_grad()
def likelihood(
    model: DualFlow, item: Item, other: Item | None, *, voxel_mm: Sequence[float], draws: int, steps: int, seed: int
) -> dict[str, float]:
    """Score the density of the real target of `item` under `model`, as columns of the score table.

    The density is that of the voxels of the mask in the target's field of view. Others are integrated out.

    Args:
        model: a trained flow in evaluation mode.
        item: the scan.
        other: a scan of another subject, which provides the wrong source; None if there is no other subject.
        voxel_mm: edge lengths of a voxel in mm.
        draws: background draws of `mask_nll`.
        steps: annealing steps of `mask_nll` under the true source.
        seed: seed of the draws.

    Returns:
        `bits_in_mask`: estimate of the negative log2 density per voxel of the mask under the true source (`mask_nll`),
        with `bits_slack` and `bits_effective_draws`. `nll_true`, `nll_wrong`, `nll_blurred`: bounds in nats per voxel
        of the mask (`mask_bound`) from the same draws, under the true source, another subject's source, and the
        blurred true source.
        `explained_level_1` .., finest first: share of the latent variance of a level that the prior's mean explains.
        `explained_other_level_1` ..: the same under another subject's source, which measures what subjects share.
        Columns that need another subject, or a prior with a mean, are absent without one.
    """
    device = device_of(model)
    target, side, brain = item["target"].to(device), item["side"][None].to(device), item["mask"].to(device)
    mask = scored(item).to(device)
    wrong = None if other is None else exchange_source(item, other)
    sources = {"true": item["source"], "wrong": wrong, "blurred": blur_source(item, voxel_mm)}
    sources = {name: source[None].to(device) for name, source in sources.items() if source is not None}

    def density_given(condition: Condition) -> Density:
        return lambda volumes: model.density(volumes, condition.repeat(len(volumes)))[0]

    conditions = {name: model.condition(source, side) for name, source in sources.items()}
    hidden = HiddenLaw.of(model.spec, brain & ~mask, conditions["true"])
    target = torch.where(mask, target, hidden.mean)
    densities = {name: density_given(condition) for name, condition in conditions.items()}
    scores = {
        f"nll_{name}": mask_bound(density, target, mask, model.spec, draws=draws, seed=seed, hidden=hidden)
        for name, density in densities.items()
    }
    estimate = mask_nll(densities["true"], target, mask, model.spec, draws=draws, steps=steps, seed=seed, hidden=hidden)
    scores["bits_in_mask"], scores["bits_slack"] = estimate.nll / log(2), estimate.slack / log(2)
    scores["bits_effective_draws"] = estimate.effective_draws
    for name, key in (("explained", "true"), ("explained_other", "wrong")):
        if key in sources and model.spec.has_prior_mean:
            shares = explained_variance(model, target[None], sources[key], side, brain[None]).tolist()
            scores |= {f"{name}_level_{level}": share for level, share in enumerate(shares, 1)}
    return scores


class HiddenLaw(NamedTuple):
    """The normal distribution q of the voxels that a density is integrated over: those outside the mask.

    Attributes:
        mean: in the target's unit, `[C, D, H, W]`.
        sd: the same.
    """

    mean: Tensor
    sd: Tensor

    @classmethod
    def of(cls, spec: FlowSpec, unseen: Tensor, condition: Condition | None = None) -> HiddenLaw:
        """The background noise of training; in the brain's `unseen` voxels `[C, D, H, W]` the flow's mean and spread.

        The unseen voxels are those outside the target's field of view.
        """
        # A flow trained without noise also has a bound, because q may have any width.
        width = spec.background_noise or spec.noise or 0.01
        mean, sd = (torch.full_like(unseen, value, dtype=torch.float32) for value in (0.0, width))
        if condition is not None:
            mean, sd = torch.where(unseen, condition.mean[0], mean), torch.where(unseen, condition.scale[0], sd)
        return cls(mean, sd)


class MaskDensity(NamedTuple):
    """Estimate of a density inside the mask.

    Attributes:
        nll: nats per voxel of the mask; on average not below the exact value.
        slack: how far `nll` may be from the exact value, in nats per voxel: FURTHER_GAIN times what the last doubling
            of the steps gained, and the standard error of the draws; infinite if no length of move was short enough.
        effective_draws: effective number of independent draws, `(sum w)^2 / sum w^2` of their weights w.
    """

    nll: float
    slack: float
    effective_draws: float


def mask_bound(
    density: Density,
    target: Tensor,
    mask: Tensor,
    spec: FlowSpec,
    *,
    draws: int,
    seed: int,
    hidden: HiddenLaw | None = None,
) -> float:
    """Upper bound of `-log p(x) / M`, for the intensities x of the M voxels inside the mask alone.

    The density of the whole grid is dominated by the empty background. For the voxels b outside the mask and any
    distribution q of them, Jensen's inequality gives

        log p(x) = log E_q[p(x, b) / q(b)] >= E_q[log p(x, b) - log q(b)],

    with equality if q(b) = p(b | x). By default q is the distribution of the background in training (see
    `with_background`). The excess of the bound is the divergence of q from p(b | x), in which flows differ. Bounds of
    one flow and target from the same draws are comparable, those of two flows are not. A dequantised target also
    receives its noise inside the mask; the same inequality then bounds the mean density of its bins.

    Args:
        density: log p of volumes `[N, C, D, H, W]` in nats.
        target: `[C, D, H, W]`, in its unit (SUVR).
        mask: `[C, D, H, W]`, bool.
        spec: spec of the flow, for the noise of its training targets.
        draws: number of draws of b over which the bound is averaged.
        seed: seed of the draws.
        hidden: the distribution q; by default the background noise of training in every voxel outside the mask.

    Returns:
        Nats per voxel of the mask, for intensities in the target's unit; negative if the density exceeds 1.
    """
    return -float(_log_weights(density, target, mask, spec, hidden, draws, 1, seed).mean()) / int(mask.sum())


def mask_nll(
    density: Density,
    target: Tensor,
    mask: Tensor,
    spec: FlowSpec,
    *,
    draws: int,
    steps: int,
    seed: int,
    hidden: HiddenLaw | None = None,
) -> MaskDensity:
    """Estimate `-log p(x) / M` of `mask_bound` without its excess, so that flows are comparable.

    Annealed importance sampling moves the draws of the background from q towards p(b | x) (see `anneal`). The estimate
    is the mean of the weights over the draws. It is still a bound on average, but its excess falls with `steps`.

    Args:
        density: log p of volumes `[N, C, D, H, W]` in nats, differentiable.
        target: `[C, D, H, W]`, in its unit (SUVR).
        mask: `[C, D, H, W]`, bool.
        spec: spec of the flow, for the noise of its training targets.
        draws: number of draws of b.
        steps: number of annealing steps, each with an evaluation of the density and its gradient for every length of
            the moves that is tried.
        seed: seed of the draws.
        hidden: the distribution q, as in `mask_bound`.
    """
    voxels = int(mask.sum())
    weights, half = (
        _log_weights(density, target, mask, spec, hidden, draws, count, seed) for count in (steps, (steps + 1) // 2)
    )
    nll, coarse = (log(draws) - float(torch.logsumexp(part, dim=0)) for part in (weights, half))
    error = float(weights.std()) / sqrt(draws) if draws > 1 else 0.0
    effective_draws = float(1 / torch.softmax(weights, dim=0).square().sum())
    # Equal weights are those of no move: all were too long. If they vary, nothing tells how loose the bound is.
    unknown = torch.equal(weights, half) and not (draws > 1 and float(weights.std()) < 1)
    further = inf if unknown else FURTHER_GAIN * max(coarse - nll, 0.0)
    return MaskDensity(nll / voxels, (further + error) / voxels, effective_draws)


def _log_weights(
    density: Density,
    target: Tensor,
    mask: Tensor,
    spec: FlowSpec,
    hidden: HiddenLaw | None,
    draws: int,
    steps: int,
    seed: int,
) -> Tensor:
    """Log-weights of the draws, `[draws]`."""
    hidden = HiddenLaw.of(spec, torch.zeros_like(mask)) if hidden is None else hidden
    generator = torch.Generator().manual_seed(seed)
    outside = (~mask).flatten().nonzero()[:, 0]
    mean, sd = hidden.mean.flatten()[outside], hidden.sd.flatten()[outside]
    log_volume = float(sd.double().log().sum()) + 0.5 * len(outside) * log(2 * pi)
    parts = []
    for start in range(0, draws, BATCH):
        inside = target.expand(min(BATCH, draws - start), *target.shape)
        if spec.dequantisation == "uniform":
            inside = inside + spec.bin_width * uniform_noise(inside, generator)

        def log_ratio(u: Tensor, inside: Tensor = inside) -> Tensor:
            volumes = inside.flatten(1).index_copy(1, outside, mean + sd * u).view_as(inside)
            return density(volumes).double() + 0.5 * u.double().square().sum(dim=1) + log_volume

        u = standard_noise((len(inside), len(outside)), inside, generator)
        parts.append(anneal(log_ratio, u, steps, generator))
    return torch.cat(parts)


def exchange_source(item: Item, other: Item) -> Tensor:
    """The source `[2C, D, H, W]` of `other` in the brain mask of `item`; missing voxels take their nearest neighbour.

    Brain mask and side information remain those of `item`, so only the anatomy inside the brain differs.
    """
    filled = other["source"].numpy()[(..., *nearest_inside(other["mask"][0].numpy()))]
    exchanged: Tensor = torch.from_numpy(filled) * item["mask"]
    return exchanged


def blur_source(item: Item, voxel_mm: Sequence[float], sigma_mm: float = BLUR_MM) -> Tensor:
    """The source `[2C, D, H, W]` of `item`, smoothed by a Gaussian within the mask; the outline stays sharp.

    The detail is smoothed like the images.
    """
    mask = item["mask"].numpy()
    sigma = [0.0, *(sigma_mm / edge for edge in voxel_mm)]
    image, weight = (
        gaussian_filter(volume.astype(np.float64), sigma, mode="constant")
        for volume in (np.where(mask, item["source"].numpy(), 0.0), mask)
    )
    smooth: NDArray[np.float64] = np.divide(image, weight, out=np.zeros_like(image), where=mask)
    return torch.from_numpy(smooth.astype(np.float32))


def another_subject(scans: Sequence[str], index: int) -> int | None:
    """Index of the next scan, cyclically, of another subject than scan `index`; None if there is no other subject."""
    subjects = [Scan.parse(key).subject for key in scans]
    candidates = ((index + shift) % len(subjects) for shift in range(1, len(subjects)))
    return next((candidate for candidate in candidates if subjects[candidate] != subjects[index]), None)
