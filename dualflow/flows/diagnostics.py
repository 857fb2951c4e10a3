"""Diagnostics of a flow: the variance that its prior explains, and the errors of its two cycles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.flows.bijection import upcast
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import EVALUATION_SEED
from dualflow.flows.source import GlowSource


@torch.no_grad()
def explained_variance(
    flow: DualFlow, target: Tensor, source: Tensor, side: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return the share of each level's latent variance that the prior's mean explains, `[L]`, finest first.

        1 - sum w |z - mean|^2 / sum w |z|^2,    w: share of the mask in the latent's voxel

    0 means no better than the mean 0 of a standard normal; 1 means that source, side and coarser latents determine the
    latent. The share includes what all subjects have in common; compare it with the share under another subject's
    source.
    """
    target = prepare_target(target, mask, flow.spec, torch.Generator().manual_seed(EVALUATION_SEED))
    condition = flow.condition(source, side)
    code, shares = flow.encoding(target, condition), []
    for level, z in enumerate(code.latents):
        context = flow.prior_context(level, code.coarser[level], condition)
        mean, _ = flow.prior(level).mean_and_log_scale(context, z)
        inside = torch.ones_like(target) if mask is None else mask.to(target.dtype)
        weight = F.avg_pool3d(inside[:, :1], 2 ** (level + 1))
        shares.append(1 - (weight * upcast(z - mean).square()).sum() / (weight * upcast(z).square()).sum())
    return torch.stack(shares)


@torch.no_grad()
def round_trip_error(flow: DualFlow, target: Tensor, source: Tensor, side: Tensor | None) -> float:
    """Return the largest absolute difference between a target and the decode of its encoding, in the target's unit.

    This is the cycle target -> latents -> target under the source. A bijection closes it up to rounding, so it is
    monitored and is no term of the loss: its gradient is 0.
    """
    latents, _ = flow.encode(target, source, side)
    return float((flow.decode(latents, source, side) - target).abs().max())


@torch.no_grad()
def source_round_trip_error(source: GlowSource, volume: Tensor) -> float:
    """Return the same error of the cycle source -> latents -> source through the source's own flow."""
    latents = source.flow.encode(volume, source.no_maps).latents
    return float((source.flow.decode(lambda level, _: latents[level], source.no_maps)[0] - volume).abs().max())
