"""DualFlow: p(target | source, side information) as one exact density that can be sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, prod
from typing import Self

import torch
from torch import Tensor, nn

from dualflow.errors import ConfigError
from dualflow.flows.base_distributions import LowRankGaussian, StandardNormal
from dualflow.flows.bijection import upcast
from dualflow.flows.condition import Condition, InputCheck, check_divisible
from dualflow.flows.interface import ConditionalDensity
from dualflow.flows.latent_sampling import LATENT_TRANSFORMS
from dualflow.flows.mean_models import MEANS
from dualflow.flows.multiscale import Encoding, MultiScaleFlow, level_channels, level_shapes
from dualflow.flows.predictions import predict
from dualflow.flows.prior import LevelChannels, LevelPrior, PriorContext
from dualflow.flows.rng import uniform_noise
from dualflow.flows.side_information import SideTokens
from dualflow.flows.source import SOURCES
from dualflow.flows.spec import FlowSpec

SIDE_EMBEDDING = 8
SAMPLES_AT_ONCE = 8
"""Samples decoded together; fewer leave the processor idle."""


class DualFlow(ConditionalDensity):
    """Exact conditional density of a target volume given a source volume and side information.

    With the mean image m = mean(source, side), r = residual_scale, the multi-scale flow f and M target voxels:

        x' = (target - m) / r,    (z_1, ..., z_L) = f(x'; features)
        log p(target | source, side) = sum_l log p(z_l | features_l, ...) + log |det df/dx'| - M log r

    The shift by m has log-det 0, so a regression explains variance at no cost in likelihood. This is DUAL-GLOW's
    conditional likelihood (Sun et al. 2019) with a mean, and optionally with couplings that read the source.

    The mean model is fitted elsewhere and frozen here. A training wraps the model in a `FlowObjective`; call
    `initialize_flow` once before that.

    Args:
        spec: the choice of layers; a row of PRESETS or a variation of one.
        shape: spatial size `(D, H, W)` of all volumes, divisible by `2**levels`.
        side_features: number S of side values per subject.
        source_channels: channels of the source.
        target_channels: channels of the target.

    Raises:
        ShapeError: the shape does not divide by `2**levels`.
        ConfigError: a mean model is asked for and the target has more than one channel.
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
        has_mean = spec.mean != "none"
        if has_mean and target_channels != 1:
            raise ConfigError(
                f"mean: {spec.mean} predicts one channel and the target has {target_channels}; choose mean: none"
            )
        self.spec, self.shape, self.side_features = spec, tuple(shape), side_features
        self.source_channels, self.target_channels = source_channels, target_channels
        self.check = InputCheck(shape, source_channels, target_channels, side_features, spec.levels)
        embedding = SIDE_EMBEDDING if side_features else 0

        self.mean_model = MEANS[spec.mean](shape, side_features, source_channels).requires_grad_(False)
        self.side_tokens = SideTokens(side_features, embedding, spec.side_dropout) if side_features else None
        self.source = SOURCES[spec.source](
            spec, source_channels, target_channels * has_mean, embedding * spec.side_in_context
        )
        self.flow = MultiScaleFlow(spec, target_channels, self.source.map_channels)
        self.priors = nn.ModuleList(self._level_priors(0 if spec.side_in_context else embedding))

    def _level_priors(self, side_embedding: int) -> list[LevelPrior]:
        """One prior per level; side embedding and low-rank base belong to the coarsest."""
        spec, latents = self.spec, level_channels(self.target_channels, self.spec.levels)
        priors = []
        for level, (latent, features) in enumerate(zip(latents, self.source.channels, strict=True)):
            last = level + 1 == spec.levels
            base: StandardNormal | LowRankGaussian = StandardNormal()
            if last and spec.low_rank:
                size = latent * prod(level_shapes(self.shape, spec.levels)[-1])
                base = LowRankGaussian(size, spec.low_rank, spec.low_rank_shrinkage)
            channels = LevelChannels(latent, features, 0 if last else latent, side_embedding if last else 0)
            priors.append(LevelPrior(channels, spec, base))
        return priors

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; the mean model is frozen and always stays in evaluation."""
        super().train(mode)
        self.mean_model.eval()
        return self

    def log_prob(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `log p(target | source, side)` in nats, `[N]`.

        Args:
            target: `[N, C, D, H, W]`, in its unit (SUVR).
            source: `[N, C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self._check_inputs(source, side, target=target)
        return self.density(target, self.condition(source, side))[0]

    def log_mass(
        self,
        target: Tensor,
        source: Tensor,
        side: Tensor | None = None,
        draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return a lower bound of `log P(target | source, side)` in nats, `[N]`, for multiples of `bin_width`.

            log P(y) = log int_bin p(v) dv >= E_u log p(y + w u) + M log w,    u uniform on [0, 1)^M, w = bin_width

        The expectation is a mean over `draws` (Theis et al. 2016; Lu & Huang 2020, section 4.2).

        Raises:
            ConfigError: the flow was not built for integers, or `draws` is below 1.
            InputError: an input has the wrong shape, dtype or values.
        """
        if draws < 1:
            raise ConfigError(f"log_mass of {draws} draws; give at least 1")
        if self.spec.dequantisation == "none":
            raise ConfigError("log_mass is for targets that are dequantised; choose dequantisation: uniform")
        self._check_inputs(source, side, target=target)
        condition, width = self.condition(source, side), self.spec.bin_width
        terms = [self.density(target + width * uniform_noise(target, generator), condition)[0] for _ in range(draws)]
        return torch.stack(terms).mean(dim=0) + target[0].numel() * log(width)

    def encode(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the latents, finest first, and `log |det dz/dtarget|`, `[N]`.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self._check_inputs(source, side, target=target)
        code = self.encoding(target, self.condition(source, side))
        return code.latents, code.log_det

    def decode(self, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, C, D, H, W]` with these latents.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self._check_inputs(source, side, latents=latents)
        condition = self.condition(source, side)
        return self._decode(lambda level, _: latents[level], condition)

    @torch.no_grad()
    def sample(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        latents: str | None = None,
    ) -> Tensor:
        """Draw n targets per source, `[n, N, C, D, H, W]`; the same generator state gives the same targets.

        `latents` names a row of LATENT_TRANSFORMS in place of the spec's choice; with any but `none` the samples are no
        longer those of `log_prob`.

        Raises:
            ConfigError: `latents` has no row, n is below 1, or the temperature is negative.
            InputError: an input has the wrong shape, dtype or values.
        """
        if latents is not None and latents not in LATENT_TRANSFORMS:
            raise ConfigError(f"unknown latents '{latents}'; choose from: {', '.join(LATENT_TRANSFORMS)}")
        if n < 1 or not 0 <= temperature < float("inf"):
            raise ConfigError(f"{n} samples at temperature {temperature:g}; give at least 1 at 0 or more")
        self._check_inputs(source, side)
        condition = self.condition(source, side)
        at_once = max(1, SAMPLES_AT_ONCE // len(source))
        counts = [min(at_once, n - start) for start in range(0, n, at_once)]
        drawn = torch.cat([self.draw(condition.repeat(count), temperature, generator, latents) for count in counts])
        if self.spec.dequantisation == "uniform":
            drawn = self.spec.bin_width * torch.floor(drawn / self.spec.bin_width)
        return drawn.view(n, *condition.mean.shape)

    @torch.no_grad()
    def mean(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the mean model's image `[N, C, D, H, W]`; zeros without a mean model."""
        if self.spec.mean == "none":
            return source.new_zeros(len(source), self.target_channels, *self.shape)
        with torch.autocast(source.device.type, enabled=False):  # the subtracted image must be the same everywhere
            image: Tensor = self.mean_model(source, self.check.side(side, source))
        return image

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the point estimate `[N, C, D, H, W]`, by the spec's prediction.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self._check_inputs(source, side)
        return predict(self, source, side, self.spec.prediction)

    def condition(
        self, source: Tensor, side: Tensor | None = None, mean: Tensor | None = None, *, train_source: bool = True
    ) -> Condition:
        """Compute the condition of the target's flow from source and side values.

        Args:
            source: `[N, C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.
            mean: mean image in place of the mean model's, `[N, C, D, H, W]`.
            train_source: whether gradients reach the source network.

        Raises:
            ShapeError: a volume is not of the model's size.
            ConfigError: a mean image is given to a flow without a mean.
        """
        self.check.volume(source, "source")
        side = self.check.side(side, source)
        if mean is not None and self.spec.mean == "none":
            raise ConfigError("a mean image was given to a flow with mean: none; leave it out, or choose a mean model")
        mean = self.mean(source, side) if mean is None else mean
        self.check.volume(mean, "mean", len(source))
        embedding = None if self.side_tokens is None else self.side_tokens(side)
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_source):
            code = self.source(
                source,
                mean if self.spec.mean != "none" else None,
                embedding if self.spec.side_in_context else None,
            )
        return Condition(mean, code.features, code.maps, embedding, code.log_prob)

    def density(self, target: Tensor, condition: Condition) -> tuple[Tensor, Encoding, list[Tensor]]:
        """Return `log p(target | condition)` in nats `[N]`, the encoding, and the prior's term of each level."""
        code = self.encoding(target, condition)
        parts = [
            self.prior(level).log_prob(z, self.prior_context(level, code.coarser[level], condition))
            for level, z in enumerate(code.latents)
        ]
        return code.log_det + torch.stack(parts).sum(0), code, parts

    def draw(
        self,
        condition: Condition,
        temperature: float,
        generator: torch.Generator | None = None,
        latents: str | None = None,
    ) -> Tensor:
        """Draw one target per condition, `[N, C, D, H, W]`; gradients pass."""
        channels = level_channels(self.target_channels, self.spec.levels)
        transform = self.spec.latents if latents is None else latents

        def choose(level: int, coarser: Tensor | None) -> Tensor:
            shape = condition.features[level].shape
            like = upcast(condition.mean).new_empty(shape[0], channels[level], *shape[2:])
            context = self.prior_context(level, coarser, condition)
            return self.prior(level).sample(context, like, temperature, generator, transform)

        return self._decode(choose, condition)

    def encoding(self, target: Tensor, condition: Condition) -> Encoding:
        """Return the latents of a target with the inputs of the priors; log-det in the target's unit."""
        self.check.volume(target, "target", len(condition.mean))
        code = self.flow.encode(self.residual(target, condition), condition.maps)
        return code._replace(log_det=code.log_det - target[0].numel() * log(self.spec.residual_scale))

    def prior_context(self, level: int, coarser: Tensor | None, condition: Condition) -> PriorContext:
        """Return the context of a level's prior."""
        return PriorContext(condition.features[level], coarser, condition.side)

    def prior(self, level: int) -> LevelPrior:
        """Return the prior of a level, 0 the finest."""
        prior = self.priors[level]
        assert isinstance(prior, LevelPrior)
        return prior

    def _check_inputs(
        self,
        source: Tensor,
        side: Tensor | None,
        target: Tensor | None = None,
        latents: Sequence[Tensor] | None = None,
    ) -> None:
        self.check(next(self.parameters()), source, side, target=target, latents=latents)

    def _decode(self, choose: Callable[[int, Tensor | None], Tensor], condition: Condition) -> Tensor:
        return self.flow.decode(choose, condition.maps)[0] * self.spec.residual_scale + condition.mean

    def residual(self, target: Tensor, condition: Condition) -> Tensor:
        """Return the flow's input: the residual of a target, in units of the residual scale."""
        return upcast(target - condition.mean) / self.spec.residual_scale
