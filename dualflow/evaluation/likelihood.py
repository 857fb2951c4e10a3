"""Likelihood of held-out targets under a flow: nats inside the mask, under true, wrong and blurred sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.distributions import Normal

from dualflow.data.dataset import Item
from dualflow.flows.diagnostics import explained_variance
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import standard_noise, uniform_noise
from dualflow.flows.spec import FlowSpec
from dualflow.inference.convert import fill_outside
from dualflow.layout import Scan

Density = Callable[[Tensor], Tensor]
"""Maps volumes `[N, C, D, H, W]` to log-densities `[N]` in nats."""

BLUR_MM = 8.0
"""Standard deviation of the blur, which removes cortical contrast and keeps the outline and large structures."""
BATCH = 8
"""Volumes per pass through a flow."""


@torch.no_grad()
def likelihood(
    model: DualFlow, item: Item, other: Item | None, *, voxel_mm: Sequence[float], draws: int, seed: int
) -> dict[str, float]:
    """Score the density of the real target of `item` under `model`, as columns of the score table.

    Args:
        model: a trained flow in evaluation mode.
        item: the scan.
        other: a scan of another subject, which provides the wrong source; None if there is no other subject.
        voxel_mm: edge lengths of a voxel in mm.
        draws: background draws of `mask_nll`.
        seed: seed of the draws.

    Returns:
        `nll_true`, `nll_wrong`, `nll_blurred`: NLL in nats per voxel of the mask (see `mask_nll`) under the true
        source, another subject's source, and the blurred true source. `bits_in_mask`: `nll_true` in bits.
        `explained_level_1` .., finest first: share of the latent variance of a level that the prior's mean explains.
        `explained_other_level_1` ..: the same under another subject's source, which measures what subjects share.
        Columns that need another subject are absent without one.
    """
    target, side, mask = item["target"][None], item["side"][None], item["mask"]
    wrong = None if other is None else exchange_source(item, other)
    sources = {"true": item["source"], "wrong": wrong, "blurred": blur_source(item, voxel_mm)}

    def nll(source: Tensor) -> float:
        def density(volumes: Tensor) -> Tensor:
            return model.log_prob(volumes, _repeat(source[None], len(volumes)), _repeat(side, len(volumes)))

        return mask_nll(density, item["target"], mask, model.spec, draws=draws, seed=seed)

    scores = {f"nll_{name}": nll(source) for name, source in sources.items() if source is not None}
    scores["bits_in_mask"] = scores["nll_true"] / log(2)
    for name, source in (("explained", item["source"]), ("explained_other", wrong)):
        if source is not None:
            shares = explained_variance(model, target, source[None], side, mask[None]).tolist()
            scores |= {f"{name}_level_{level}": share for level, share in enumerate(shares, 1)}
    return scores


def mask_nll(density: Density, target: Tensor, mask: Tensor, spec: FlowSpec, *, draws: int, seed: int) -> float:
    """Upper bound of `-log p(x) / M`, for the intensities x of the M voxels inside the mask alone.

    The density of the whole grid is dominated by the empty background. For the voxels b outside the mask and any
    distribution q of them, Jensen's inequality gives

        log p(x) = log E_q[p(x, b) / q(b)] >= E_q[log p(x, b) - log q(b)],

    with equality if q(b) = p(b | x). Here q is the distribution of the background in training (see `with_background`).
    The background cancels, so flows are comparable. A dequantised target also receives its noise inside the mask; the
    same inequality then bounds the mean density of its bins.

    Args:
        density: log p of volumes `[N, C, D, H, W]` in nats.
        target: `[C, D, H, W]`, in its unit (SUVR).
        mask: `[C, D, H, W]`, bool.
        spec: spec of the flow, for the noise of its training targets.
        draws: number of draws of b over which the bound is averaged.
        seed: seed of the draws.

    Returns:
        Nats per voxel of the mask, for intensities in the target's unit; negative if the density exceeds 1.
    """
    # A flow trained without noise also has a bound, because q may have any width.
    width = spec.background_noise or spec.noise or 0.01
    generator = torch.Generator().manual_seed(seed)
    targets = target.expand(draws, *target.shape)
    background = width * standard_noise(tuple(targets.shape), targets, generator)
    if spec.dequantisation == "uniform":
        targets = targets + spec.bin_width * uniform_noise(targets, generator)
    volumes = torch.where(mask, targets, background)
    log_q = Normal(0.0, width).log_prob(background[:, ~mask].double()).sum(dim=1)  # type: ignore[no-untyped-call]
    parts = [density(volumes[start : start + BATCH]) for start in range(0, draws, BATCH)]
    return -float((torch.cat(parts).double() - log_q).mean()) / int(mask.sum())


def exchange_source(item: Item, other: Item) -> Tensor:
    """The source `[C, D, H, W]` of `other` in the brain mask of `item`; missing voxels take their nearest neighbour.

    Brain mask and side information remain those of `item`, so only the anatomy inside the brain differs.
    """
    filled = fill_outside(other["source"].numpy(), other["mask"][0].numpy())
    exchanged: Tensor = torch.from_numpy(filled) * item["mask"]
    return exchanged


def blur_source(item: Item, voxel_mm: Sequence[float], sigma_mm: float = BLUR_MM) -> Tensor:
    """The source `[C, D, H, W]` of `item`, smoothed by a Gaussian within the mask; the outline stays sharp."""
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


def _repeat(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))
