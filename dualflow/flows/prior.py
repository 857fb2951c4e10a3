"""Conditional Gaussian priors of the target's latents, level by level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.errors import ShapeError
from dualflow.flows.bijection import soft_bound
from dualflow.flows.network import ZeroConv, channels_last, to_data_format
from dualflow.flows.spec import FlowSpec

LEAKY_SLOPE = 0.2


class PriorContext(NamedTuple):
    """Inputs of a level's prior.

    Attributes:
        source: source features or source latents of this level, `[N, F, d, h, w]`.
        coarser: input of the target flow's next level, a bijection of all coarser target latents; None at the coarsest
            level.
        side: embedding of the side information, `[N, E]`, or None.
    """

    source: Tensor
    coarser: Tensor | None
    side: Tensor | None


class LevelChannels(NamedTuple):
    """Channels of one level's latent and of each field of its PriorContext; 0 for an absent field."""

    latent: int
    source: int
    coarser: int
    side: int


class StandardMoments(nn.Module):
    """Moments of the standard normal, for any context."""

    def forward(self, context: PriorContext, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean 0 and log-scale 0."""
        return torch.zeros_like(like), torch.zeros_like(like)


class ConvMoments(nn.Module):
    """Mean and log-scale from one convolution of the context u, initialised at the standard normal.

        mean = c_1(u),    log sigma = bound * tanh(c_2(u) / bound)

    Either may be switched off, and is then 0. With the source's latents as context, the mean alone and a kernel of 5
    this is DUAL-GLOW's relation network; with the coarser target latents it is Glow's split prior.
    """

    def __init__(self, channels: LevelChannels, spec: FlowSpec, *, source: bool, coarser: bool) -> None:
        super().__init__()
        self.spec, self.source, self.coarser = spec, source, coarser and channels.coarser > 0
        in_channels = channels.source * self.source + channels.coarser * self.coarser
        self.conv = ZeroConv(in_channels, channels.latent * (spec.prior_mean + spec.prior_scale), spec.prior_kernel)

    def forward(self, context: PriorContext, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(mean, log_scale)`."""
        inputs = [context.source] if self.source else []
        if self.coarser:
            assert context.coarser is not None
            inputs.append(context.coarser)
        out = to_data_format(self.conv(torch.cat([channels_last(part) for part in inputs], dim=1)), like)
        count = like.shape[1]
        mean = out[:, :count] if self.spec.prior_mean else torch.zeros_like(like)
        if self.spec.prior_leaky:
            mean = F.leaky_relu(mean, LEAKY_SLOPE)
        raw = out[:, -count:] if self.spec.prior_scale else torch.zeros_like(like)
        return mean, soft_bound(raw, self.spec.prior_scale_bound)


def standard_moments(channels: LevelChannels, spec: FlowSpec) -> nn.Module:
    """Build the moments of the standard normal."""
    return StandardMoments()


def split_moments(channels: LevelChannels, spec: FlowSpec) -> nn.Module:
    """Build Glow's split prior from the coarser target latents; the coarsest level is standard normal."""
    return ConvMoments(channels, spec, source=False, coarser=True) if channels.coarser else StandardMoments()


def relation_moments(channels: LevelChannels, spec: FlowSpec) -> nn.Module:
    """Build a prior from the source features of the level, and from the coarser target latents with `prior_coarser`."""
    return ConvMoments(channels, spec, source=True, coarser=spec.prior_coarser)


class LevelPrior(nn.Module):
    """Law of a level's latent: `e = (z - mean - side shift) / sigma` follows the flow's base distribution."""

    def __init__(self, channels: LevelChannels, spec: FlowSpec) -> None:
        super().__init__()
        self.moments = PRIORS[spec.prior](channels, spec)
        self.side = nn.Linear(channels.side, channels.latent, bias=False) if channels.side else None
        if self.side is not None:
            nn.init.zeros_(self.side.weight)

    def standardise(self, z: Tensor, context: PriorContext) -> tuple[Tensor, Tensor]:
        """Return `(e, log sigma)`, both with the size of the latent.

        Raises:
            ShapeError: the latent and the source features differ in grid size.
        """
        mean, log_scale = self.mean_and_log_scale(context, z)
        return (z - mean) * (-log_scale).exp(), log_scale

    def restore(self, e: Tensor, context: PriorContext) -> Tensor:
        """Return the latent with standardised values e; the inverse of `standardise`.

        Raises:
            ShapeError: e and the source features differ in grid size.
        """
        mean, log_scale = self.mean_and_log_scale(context, e)
        return mean + log_scale.exp() * e

    def mean_and_log_scale(self, context: PriorContext, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-scale of the latent, with the size of `like`.

        Raises:
            ShapeError: the latent and the source features differ in grid size.
        """
        if context.source.shape[2:] != like.shape[2:]:
            raise ShapeError(
                f"latent grid {tuple(like.shape[2:])} differs from the source features' grid "
                f"{tuple(context.source.shape[2:])}; pass both for the same level"
            )
        mean, log_scale = self.moments(context, like)
        if self.side is not None:
            assert context.side is not None
            mean = mean + self.side(context.side).to(like.dtype)[:, :, None, None, None]
        return mean, log_scale


PRIORS = {"standard": standard_moments, "split": split_moments, "relation": relation_moments}
