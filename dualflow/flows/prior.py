"""Conditional Gaussian priors: what the source says about the target's latents, level by level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.errors import ShapeError
from dualflow.flows.base_distributions import LowRankGaussian, StandardNormal
from dualflow.flows.bijection import soft_bound, sum_per_sample
from dualflow.flows.latent_sampling import LATENT_TRANSFORMS
from dualflow.flows.network import ZeroConv, channels_last, to_data_format
from dualflow.flows.spec import FlowSpec

LEAKY_SLOPE = 0.2


class PriorContext(NamedTuple):
    """What a level's prior may look at.

    Attributes:
        source: source features or source latents of this level, `[N, F, d, h, w]`.
        coarser: what the target flow passed on below this level, a bijection of all coarser target latents;
            None at the coarsest level.
        side: embedding of the side information, `[N, E]`, or None.
    """

    source: Tensor
    coarser: Tensor | None
    side: Tensor | None


class LevelChannels(NamedTuple):
    """Channel counts of one level: its latent, and each kind of evidence (0: there is none)."""

    latent: int
    source: int
    coarser: int
    side: int


class StandardMoments(nn.Module):
    """Mean 0 and scale 1, whatever the evidence."""

    def forward(self, evidence: PriorContext, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        return torch.zeros_like(like), torch.zeros_like(like)


class ConvMoments(nn.Module):
    """Mean and log-scale from one convolution of the evidence u, which starts at the standard normal.

        mean = c_1(u),    log sigma = bound * tanh(c_2(u) / bound)

    Either may be switched off, and is then 0. With the source's latents as evidence, mean only and an edge of 5 this is
    DUAL-GLOW's relation network; with the coarser target latents it is Glow's split prior.
    """

    def __init__(self, channels: LevelChannels, spec: FlowSpec, *, source: bool, coarser: bool) -> None:
        super().__init__()
        self.spec, self.source, self.coarser = spec, source, coarser and channels.coarser > 0
        seen = channels.source * self.source + channels.coarser * self.coarser
        self.conv = ZeroConv(seen, channels.latent * (spec.prior_mean + spec.prior_scale), spec.prior_kernel)

    def forward(self, evidence: PriorContext, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(mean, log_scale)`."""
        seen = [evidence.source] if self.source else []
        if self.coarser:
            assert evidence.coarser is not None
            seen.append(evidence.coarser)
        out = to_data_format(self.conv(torch.cat([channels_last(part) for part in seen], dim=1)), like)
        if self.spec.prior_leaky:
            out = F.leaky_relu(out, LEAKY_SLOPE)
        count = like.shape[1]
        mean = out[:, :count] if self.spec.prior_mean else torch.zeros_like(like)
        raw = out[:, -count:] if self.spec.prior_scale else torch.zeros_like(like)
        return mean, soft_bound(raw, self.spec.prior_scale_bound)


def standard_moments(channels: LevelChannels, spec: FlowSpec) -> nn.Module:
    """The standard normal."""
    return StandardMoments()


def split_moments(channels: LevelChannels, spec: FlowSpec) -> nn.Module:
    """Glow's prior: from the coarser target latents; standard at the coarsest level, where there are none."""
    return ConvMoments(channels, spec, source=False, coarser=True) if channels.coarser else StandardMoments()


def relation_moments(channels: LevelChannels, spec: FlowSpec) -> nn.Module:
    """From the source's features of the same level, and the coarser target latents if the spec says so."""
    return ConvMoments(channels, spec, source=True, coarser=spec.prior_coarser)


class LevelPrior(nn.Module):
    """Density of one level's latent: `e = (z - mean - side shift) / sigma` is distributed as the base.

        log p(z | evidence) = log p_base(e) - sum log sigma

    Sampling inverts the same line with the same sigma: `z = mean + shift + sigma * temperature * e`.
    """

    def __init__(self, channels: LevelChannels, spec: FlowSpec, base: StandardNormal | LowRankGaussian) -> None:
        super().__init__()
        self.moments = PRIORS[spec.prior](channels, spec)
        self.base = base
        self.side = nn.Linear(channels.side, channels.latent, bias=False) if channels.side else None
        if self.side is not None:
            nn.init.zeros_(self.side.weight)

    def log_prob(self, z: Tensor, evidence: PriorContext) -> Tensor:
        """Log-density of the latent in nats, `[N]`.

        Raises:
            ShapeError: the latent and the evidence are not of one grid.
        """
        e, log_scale = self.standardise(z, evidence)
        return self.base.log_prob(e.flatten(1)) - sum_per_sample(log_scale)

    def standardise(self, z: Tensor, evidence: PriorContext) -> tuple[Tensor, Tensor]:
        """Return `(e, log sigma)`."""
        mean, log_scale = self.mean_and_log_scale(evidence, z)
        return (z - mean) * (-log_scale).exp(), log_scale

    def sample(
        self,
        evidence: PriorContext,
        like: Tensor,
        temperature: float,
        generator: torch.Generator | None = None,
        latents: str = "none",
    ) -> Tensor:
        """Draw a latent with the size and type of `like`; temperature 0 gives the mean.

        `latents` names what is done to the white noise that the base starts from, a row of LATENT_TRANSFORMS.
        """
        mean, log_scale = self.mean_and_log_scale(evidence, like)
        if temperature == 0:
            return mean

        def tool(noise: Tensor) -> Tensor:
            return LATENT_TRANSFORMS[latents](noise.view_as(like), evidence.source, 1.0, generator).flatten(1)

        e = self.base.sample(len(like), like[0], generator, tool).view_as(like)
        return mean + log_scale.exp() * temperature * e

    def mean_and_log_scale(self, evidence: PriorContext, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of the latent, of the size of `like`.

        Raises:
            ShapeError: the latent and the evidence are not of one grid.
        """
        if evidence.source.shape[2:] != like.shape[2:]:
            raise ShapeError(
                f"latent of size {tuple(like.shape[2:])} with evidence of size {tuple(evidence.source.shape[2:])}; "
                "give both for the same level"
            )
        mean, log_scale = self.moments(evidence, like)
        if self.side is not None:
            assert evidence.side is not None
            mean = mean + self.side(evidence.side).to(like.dtype)[:, :, None, None, None]
        return mean, log_scale


PRIORS = {"standard": standard_moments, "split": split_moments, "relation": relation_moments}
