"""What a flow's density says of a held-out target: nats inside the mask, and whether it rests on the right source."""

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
"""Volumes `[N, C, D, H, W]` to log-densities `[N]` in nats."""

BLUR_MM = 8.0
"""Standard deviation of the blur: regional contrast of the cortex goes, the outline and the large structures stay."""
AT_ONCE = 8
"""Volumes that pass through a flow together."""


@torch.no_grad()
def likelihood(
    model: DualFlow, item: Item, other: Item | None, *, voxel_mm: Sequence[float], draws: int, seed: int
) -> dict[str, float]:
    """What `model` says of the real target of `item`, as columns of the table of scores.

    Args:
        model: a trained flow in evaluation mode.
        item: the scan.
        other: a scan of somebody else, whose anatomy stands in for the wrong source; None where there is nobody else.
        voxel_mm: edge lengths of a voxel in mm.
        draws: see `mask_nll`.
        seed: of those draws.

    Returns:
        `nll_true`, `nll_wrong`, `nll_blurred`: NLL in nats per voxel of the mask (see `mask_nll`), under the person's
        own source, another's, and its own without its detail; `bits_in_mask`, the first of them in bits;
        `explained_level_1` .., finest first: share of the variance of the latents of a level that the prior's mean
        explains, and `explained_other_level_1` .. the same with another's source, which is what all people share.
        Where there is nobody else, what would need them is left out.
    """
    target, side, mask = item["target"][None], item["side"][None], item["mask"]
    wrong = None if other is None else in_brain_of(item, other)
    sources = {"true": item["source"], "wrong": wrong, "blurred": blurred(item, voxel_mm)}

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

    A density of the whole grid is mostly that of the empty background. With b the voxels outside the mask and any law
    q of them, Jensen's inequality gives

        log p(x) = log E_q[p(x, b) / q(b)] >= E_q[log p(x, b) - log q(b)],

    with equality where q(b) = p(b | x). Here q is the background as training shows it (see `with_background`). So the
    background cancels, and flows compare. A target that is dequantised gets its noise inside too: the density is then
    the mean over its bins, by the same inequality.

    Args:
        density: log p of volumes `[N, C, D, H, W]` in nats.
        target: `[C, D, H, W]`, in its unit (SUVR).
        mask: `[C, D, H, W]`, bool.
        spec: says which noise the targets had in training.
        draws: draws of b over which the bound is averaged.
        seed: of the draws.

    Returns:
        Nats per voxel of the mask, for intensities in the target's unit; below zero where the law is narrower than
        one unit.
    """
    # A flow trained without noise has a bound all the same, for q may have any width.
    width = spec.background_noise or spec.noise or 0.01
    generator = torch.Generator().manual_seed(seed)
    like = target.expand(draws, *target.shape)
    background = width * standard_noise(tuple(like.shape), like, generator)
    if spec.dequantisation == "uniform":
        like = like + spec.bin_width * uniform_noise(like, generator)
    volumes = torch.where(mask, like, background)
    log_q = Normal(0.0, width).log_prob(background[:, ~mask].double()).sum(dim=1)  # type: ignore[no-untyped-call]
    parts = [density(volumes[start : start + AT_ONCE]) for start in range(0, draws, AT_ONCE)]
    return -float((torch.cat(parts).double() - log_q).mean()) / int(mask.sum())


def in_brain_of(item: Item, other: Item) -> Tensor:
    """The source `[C, D, H, W]` of `other` in the brain mask of `item`; the nearest voxel fills what is missing.

    Only the anatomy inside the brain is exchanged: brain mask and side information stay the person's own, so that
    neither can give the answer away.
    """
    filled = fill_outside(other["source"].numpy(), other["mask"][0].numpy())
    exchanged: Tensor = torch.from_numpy(filled) * item["mask"]
    return exchanged


def blurred(item: Item, voxel_mm: Sequence[float], sigma_mm: float = BLUR_MM) -> Tensor:
    """The source `[C, D, H, W]` of `item` without its detail: Gaussian averages over the mask, the outline kept."""
    mask = item["mask"].numpy()
    sigma = [0.0, *(sigma_mm / edge for edge in voxel_mm)]
    image, weight = (
        gaussian_filter(volume.astype(np.float64), sigma, mode="constant")
        for volume in (np.where(mask, item["source"].numpy(), 0.0), mask)
    )
    smooth: NDArray[np.float64] = np.divide(image, weight, out=np.zeros_like(image), where=mask)
    return torch.from_numpy(smooth.astype(np.float32))


def another_person(scans: Sequence[str], index: int) -> int | None:
    """Place of the next scan of somebody else than scan `index`; None where there is nobody else."""
    people = [Scan.parse(key).subject for key in scans]
    others = ((index + shift) % len(people) for shift in range(1, len(people)))
    return next((place for place in others if people[place] != people[index]), None)


def _repeat(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))
