"""DualFlow: p(target | source, side information) as one exact, sampleable density."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from dualflow.errors import ConfigError, ShapeError
from dualflow.flows.base import LowRankGaussian, StandardNormal
from dualflow.flows.bijection import wide
from dualflow.flows.mean import MEANS
from dualflow.flows.multiscale import MultiScaleFlow, level_channels, level_shapes
from dualflow.flows.prior import Evidence, LevelChannels, LevelPrior
from dualflow.flows.side import SideDiscriminator, SideTokens
from dualflow.flows.source import SOURCES
from dualflow.flows.spec import FlowSpec

SIDE_EMBEDDING = 8
# Samples decoded together: on a CPU, float32 convolutions of a single volume miss their fast path.
SAMPLES_AT_ONCE = 8


class Condition(NamedTuple):
    """Everything the flow of the target is conditioned on, computed once per batch.

    Attributes:
        mean: `[N, C, D, H, W]`, in the target's unit.
        features: one source feature map per level, finest first.
        side: embedding `[N, E]`, or None.
        source_log_prob: log p(source) in nats `[N]`, or None.
    """

    mean: Tensor
    features: list[Tensor]
    side: Tensor | None
    source_log_prob: Tensor | None

    def repeat(self, count: int) -> Condition:
        """The same conditions `count` times along the batch axis."""
        return Condition(
            _repeat(self.mean, count),
            [_repeat(feature, count) for feature in self.features],
            None if self.side is None else _repeat(self.side, count),
            None,
        )


class DualFlow(nn.Module):
    """Exact conditional density of a target volume given a source volume and side information.

    With the mean image m = mean(source, side), r = residual_scale, the multi-scale flow f and M target voxels:

        x' = (target - m) / r,    (z_1, ..., z_L) = f(x'; features)
        log p(target | source, side) = sum_l log p(z_l | features_l, ...) + log |det df/dx'| - M log r

    The shift by m has log-det 0: what a regression explains costs no likelihood and leaves the flow the residual. This
    is DUAL-GLOW's conditional likelihood (Sun et al. 2019) with a mean, and with couplings that may see the source.

    `forward` is the training call, so that DistributedDataParallel can wrap the model; call `initialize` before that.
    The mean model is fitted elsewhere and frozen here.

    Args:
        spec: which pieces; a row of PRESETS or a variation of one.
        shape: spatial size `(D, H, W)` of all volumes, divisible by `2**levels`.
        side_features: number S of side values per person.
        source_channels: channels of the source.
        target_channels: channels of the target.

    Raises:
        ShapeError: the shape does not divide by `2**levels`.
    """

    def __init__(
        self,
        spec: FlowSpec,
        *,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        target_channels: int = 1,
    ) -> None:
        super().__init__()
        check_divisible(shape, spec.levels)
        self.spec, self.shape, self.side_features = spec, tuple(shape), side_features
        self.source_channels, self.target_channels = source_channels, target_channels
        embedding = SIDE_EMBEDDING if side_features else 0
        has_mean = spec.mean != "none"

        self.mean_model = MEANS[spec.mean](shape, side_features).requires_grad_(False)
        self.side_tokens = SideTokens(side_features, embedding, spec.side_dropout) if side_features else None
        self.source = SOURCES[spec.source](
            spec, source_channels, target_channels * has_mean, embedding * spec.side_in_context
        )
        couplings_see = self.source.channels if spec.coupling_context == "level" else ()
        self.flow = MultiScaleFlow(spec, target_channels, couplings_see)
        self.priors = nn.ModuleList(self._level_priors(0 if spec.side_in_context else embedding))
        self.discriminators = nn.ModuleList(
            SideDiscriminator(channels, side_features)
            for channels in level_channels(target_channels, spec.levels)[:-1]
            if side_features and spec.discriminator_weight
        )

    def _level_priors(self, side_embedding: int) -> list[LevelPrior]:
        """One prior per level; side embedding and low-rank base belong to the coarsest."""
        spec, latents = self.spec, level_channels(self.target_channels, self.spec.levels)
        priors = []
        for level, (latent, seen) in enumerate(zip(latents, self.source.channels, strict=True)):
            last = level + 1 == spec.levels
            base: StandardNormal | LowRankGaussian = StandardNormal()
            if last and spec.low_rank:
                size = latent * prod(level_shapes(self.shape, spec.levels)[-1])
                base = LowRankGaussian(size, spec.low_rank, spec.low_rank_shrinkage)
            channels = LevelChannels(latent, seen, 0 if last else latent, side_embedding if last else 0)
            priors.append(LevelPrior(channels, spec, base))
        return priors

    def train(self, mode: bool = True) -> Self:
        """Switch to training; the mean model always stays in evaluation, for it is not trained here."""
        super().train(mode)
        self.mean_model.eval()
        return self

    def forward(
        self,
        target: Tensor,
        source: Tensor,
        side: Tensor | None = None,
        mask: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the training loss and its named terms, each a mean over the batch.

        Args:
            target: `[N, C, D, H, W]`, in its unit (SUVR).
            source: `[N, C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.
            mask: accepted because every trainable model gets one; a density covers the whole volume.
            mean: mean image to use in place of the mean model's, such as one cross-fitted without these people,
                whose residuals are as large as those of new people.

        Returns:
            `loss`; `nll` and `source_nll` in nats per voxel; `discriminator`, mean squared error of standardised
            side values over the finer levels; `temperature0_l1` in the target's unit. Terms that the spec does not
            have are left out.
        """
        spec = self.spec
        if self.training:
            target = target + spec.noise * torch.randn_like(target)
            if spec.source == "glow":
                source = source + spec.source_noise * torch.randn_like(source)
        side = self._side(source, side)
        condition = self.condition(source, side, mean)
        latents, coarser, log_det = self._encode(target, condition)
        nll = -(self._log_prior(latents, coarser, condition) + log_det).mean() / target[0].numel()
        loss, terms = nll, {"nll": nll}
        if condition.source_log_prob is not None:
            terms["source_nll"] = -condition.source_log_prob.mean() / source[0].numel()
            loss = loss + spec.source_nll_weight * terms["source_nll"]
        if len(self.discriminators):
            errors = [hunt(z, side) for hunt, z in zip(self.discriminators, latents, strict=False)]
            terms["discriminator"] = torch.stack(errors).mean()
            loss = loss + spec.discriminator_weight * terms["discriminator"]
        if spec.temperature0_l1:
            terms["temperature0_l1"] = (self._sample(condition, 0.0, None) - target).abs().mean()
            loss = loss + spec.temperature0_l1 * terms["temperature0_l1"]
        return {"loss": loss, **terms}

    def log_prob(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `log p(target | source, side)` in nats, `[N]`."""
        condition = self.condition(source, self._side(source, side))
        latents, coarser, log_det = self._encode(target, condition)
        return self._log_prior(latents, coarser, condition) + log_det

    def encode(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the latents, finest first, and `log |det dz/dtarget|`, `[N]`."""
        latents, _, log_det = self._encode(target, self.condition(source, self._side(source, side)))
        return latents, log_det

    def decode(self, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, C, D, H, W]` whose latents these are."""
        condition = self.condition(source, self._side(source, side))
        return self._decode(self.flow.decode(lambda level, _: latents[level], self._contexts(condition))[0], condition)

    @torch.no_grad()
    def sample(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw n targets per source, `[n, N, C, D, H, W]`; the same generator state gives the same targets."""
        condition = self.condition(source, self._side(source, side))
        at_once = max(1, SAMPLES_AT_ONCE // len(source))
        counts = [min(at_once, n - start) for start in range(0, n, at_once)]
        drawn = [self._sample(condition.repeat(count), temperature, generator) for count in counts]
        return torch.cat(drawn).view(n, *condition.mean.shape)

    @torch.no_grad()
    def mean(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the mean model's image `[N, C, D, H, W]`; zeros without a mean model."""
        if self.spec.mean == "none":
            return source.new_zeros(len(source), self.target_channels, *self.shape)
        image: Tensor = self.mean_model(source, self._side(source, side))
        return image

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return one best image: the mean model's, or without one the decode at temperature 0."""
        if self.spec.mean != "none":
            return self.mean(source, side)
        return self.sample(source, side, n=1, temperature=0.0)[0]

    @torch.no_grad()
    def initialize(
        self, target: Tensor, source: Tensor, side: Tensor | None = None, mean: Tensor | None = None
    ) -> None:
        """Set actnorms and the low-rank base from training scans, once, before training and before DDP wraps the model.

        The more scans the better: actnorms take their moments, the base its principal components from this one batch.
        """
        target = target + self.spec.noise * torch.randn_like(target)
        if self.spec.source == "glow":
            self.source.initialize(source + self.spec.source_noise * torch.randn_like(source))
        condition = self.condition(source, self._side(source, side), mean)
        latents, coarser = self.flow.initialize(self._residual(target, condition), self._contexts(condition))
        prior = self.priors[-1]
        assert isinstance(prior, LevelPrior)
        e, _ = prior.standardise(latents[-1], Evidence(condition.features[-1], coarser[-1], condition.side))
        prior.base.initialize(e.flatten(1))

    def condition(self, source: Tensor, side: Tensor, mean: Tensor | None = None) -> Condition:
        """Compute what the target's flow is conditioned on.

        Raises:
            ShapeError: a volume is not of the model's size.
            ConfigError: a mean image is given to a flow without a mean.
        """
        self._check(source, self.source_channels, "source")
        if mean is not None and self.spec.mean == "none":
            raise ConfigError("a mean image was given to a flow with mean: none; leave it out, or choose a mean model")
        mean = self.mean(source, side) if mean is None else mean
        self._check(mean, self.target_channels, "mean")
        embedding = None if self.side_tokens is None else self.side_tokens(side)
        code = self.source(
            source,
            mean if self.spec.mean != "none" else None,
            embedding if self.spec.side_in_context else None,
        )
        return Condition(mean, code.features, embedding, code.log_prob)

    def _encode(self, target: Tensor, condition: Condition) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        self._check(target, self.target_channels, "target")
        residual = self._residual(target, condition)
        latents, coarser, log_det = self.flow.encode(residual, self._contexts(condition))
        return latents, coarser, log_det - target[0].numel() * log(self.spec.residual_scale)

    def _residual(self, target: Tensor, condition: Condition) -> Tensor:
        return wide(target - condition.mean) / self.spec.residual_scale

    def _decode(self, residual: Tensor, condition: Condition) -> Tensor:
        return residual * self.spec.residual_scale + condition.mean

    def _contexts(self, condition: Condition) -> Sequence[Tensor | None]:
        return condition.features if self.spec.coupling_context == "level" else [None] * self.spec.levels

    def _log_prior(self, latents: list[Tensor], coarser: list[Tensor | None], condition: Condition) -> Tensor:
        total = torch.zeros_like(wide(latents[0][:, 0, 0, 0, 0]))
        for prior, z, h, features in zip(self.priors, latents, coarser, condition.features, strict=True):
            assert isinstance(prior, LevelPrior)
            total = total + prior.log_prob(z, Evidence(features, h, condition.side))
        return total

    def _sample(self, condition: Condition, temperature: float, generator: torch.Generator | None) -> Tensor:
        channels = level_channels(self.target_channels, self.spec.levels)

        def draw(level: int, coarser: Tensor | None) -> Tensor:
            prior, features = self.priors[level], condition.features[level]
            assert isinstance(prior, LevelPrior)
            like = wide(condition.mean).new_empty(len(features), channels[level], *features.shape[2:])
            return prior.sample(Evidence(features, coarser, condition.side), like, temperature, generator)

        return self._decode(self.flow.decode(draw, self._contexts(condition))[0], condition)

    def _side(self, source: Tensor, side: Tensor | None) -> Tensor:
        """Side information `[N, S]`; all unknown if there is none.

        Raises:
            ShapeError: it is not `[N, S]`.
        """
        if side is None:
            return source.new_full((len(source), self.side_features), torch.nan)
        if side.shape != (len(source), self.side_features):
            raise ShapeError(
                f"side information of size {tuple(side.shape)}, expected {(len(source), self.side_features)}; "
                "give one row per volume, NaN where a value is unknown"
            )
        return side

    def _check(self, volume: Tensor, channels: int, name: str) -> None:
        if volume.dim() != 5 or tuple(volume.shape[1:]) != (channels, *self.shape):
            raise ShapeError(
                f"{name} of size {tuple(volume.shape)}, expected (N, {channels}, {', '.join(map(str, self.shape))}); "
                "resample it to the grid the model was built for"
            )


def check_divisible(shape: Sequence[int], levels: int) -> None:
    """Raise unless every size can be halved `levels` times.

    Raises:
        ShapeError: the message names the nearest sizes that would do.
    """
    unit = 2**levels
    if len(shape) != 3 or any(size < unit or size % unit for size in shape):
        larger = tuple(-(-max(size, 1) // unit) * unit for size in shape)
        smaller = tuple(max(size // unit, 1) * unit for size in shape)
        raise ShapeError(
            f"volume of size {tuple(shape)} cannot be halved {levels} times; "
            f"sizes that do are multiples of {unit}, the nearest {smaller} and {larger}"
        )


def _repeat(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))
