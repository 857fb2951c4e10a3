"""DualFlow: p(target | source, side information) as one exact density that can be sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import log, prod
from typing import Self

import torch
from torch import Tensor, nn

from dualflow.errors import ConfigError
from dualflow.flows.base_distributions import SubspaceBase, white_log_prob
from dualflow.flows.bijection import sum_per_sample, upcast
from dualflow.flows.condition import Condition, InputCheck, check_divisible
from dualflow.flows.field_whitening import FieldWhitening
from dualflow.flows.interface import SAMPLES_AT_ONCE, ConditionalDensity
from dualflow.flows.latent_interpolation import LatentInterpolation
from dualflow.flows.mean_models import MEANS
from dualflow.flows.multiscale import Encoding, MultiScaleFlow, joined, level_channels, separated
from dualflow.flows.person_features import PersonFeatures, person_values
from dualflow.flows.predictions import predict
from dualflow.flows.prior import LevelChannels, LevelPrior, PriorContext
from dualflow.flows.rng import SampleGenerators, sample_seeds, standard_noise, uniform_noise
from dualflow.flows.side_information import SideTokens, side_values
from dualflow.flows.source import SOURCES
from dualflow.flows.source_spread import SPREADS
from dualflow.flows.spec import FlowSpec
from dualflow.flows.subspace_law import SubspaceLaw
from dualflow.flows.voxel_features import foreground, without_detail

SIDE_EMBEDDING = 8


class DualFlow(ConditionalDensity):
    """Exact conditional density of a target volume given a source volume and side information.

    With the mean image m = mean(source, side), the spread map r = spread(source, side), a FieldWhitening w, or the
    identity, and the multi-scale flow f:

        x' = w((target - m) / r),    (z_1, ..., z_L) = f(x'; features)
        log p(target | source, side) = log p(z_1, ..., z_L | features, ...) + log |det df/dx'| + log |det dw|
                                       - sum_v log r_v

    The shift by m has log-det 0, so a regression explains variance at no cost in likelihood. This is DUAL-GLOW's
    conditional likelihood (Sun et al. 2019) with a mean, a spread and a whitening, and optionally with couplings that
    read the source. A flow that begins with a whitening need not learn from few people how neighbouring voxels vary
    together.

    Mean, spread and whitening are fitted elsewhere, in closed form, and frozen here. A training wraps the model in a
    `FlowObjective`; call `initialize_flow` once before that.

    Args:
        spec: the choice of layers; a row of PRESETS or a variation of one.
        shape: spatial size `(D, H, W)` of all volumes, divisible by `2**levels`.
        side_features: number S of side values per subject.
        source_channels: images of the source. A source may carry the detail of each as further channels, which only the
            mean reads.
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
        self.spread = SPREADS[spec.spread](shape, spec.residual_scale, side_features, source_channels)
        self.whitening = FieldWhitening() if spec.whitening else None
        self.flow = MultiScaleFlow(spec, target_channels, self.source.map_channels)
        self.person = PersonFeatures(side_features, source_channels) if spec.low_rank else None
        self.base = self._base()
        self.priors = nn.ModuleList(self._level_priors(0 if spec.side_in_context else embedding))
        self.interpolations = nn.ModuleList(
            LatentInterpolation(features) for features in self.source.channels if spec.interpolation_l1
        )

    def _base(self) -> SubspaceBase | None:
        """The law of a few directions of all latents, or None for white noise."""
        if self.person is None:
            return None
        return SubspaceBase(self.latent_count, SubspaceLaw(self.spec.low_rank, self.person.count))

    def _level_priors(self, side_embedding: int) -> list[LevelPrior]:
        """One prior per level; the side embedding belongs to the coarsest."""
        latents, last = level_channels(self.target_channels, self.spec.levels), self.spec.levels - 1
        return [
            LevelPrior(
                LevelChannels(latent, features, 0 if level == last else latent, side_embedding * (level == last)),
                self.spec,
            )
            for level, (latent, features) in enumerate(zip(latents, self.source.channels, strict=True))
        ]

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; the mean model is frozen and always stays in evaluation."""
        super().train(mode)
        self.mean_model.eval()
        return self

    def log_prob(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `log p(target | source, side)` in nats, `[N]`.

        Args:
            target: `[N, C, D, H, W]`, in its unit (SUVR).
            source: `[N, C or 2C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self.check_inputs(source, side, target=target)
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
        self.check_inputs(source, side, target=target)
        condition, width = self.condition(source, side), self.spec.bin_width
        terms = [self.density(target + width * uniform_noise(target, generator), condition)[0] for _ in range(draws)]
        return torch.stack(terms).mean(dim=0) + target[0].numel() * log(width)

    def encode(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the latents, finest first, and `log |det dz/dtarget|`, `[N]`.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self.check_inputs(source, side, target=target)
        code = self.encoding(target, self.condition(source, side))
        return code.latents, code.log_det

    def decode(self, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, C, D, H, W]` with these latents.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self.check_inputs(source, side, latents=latents)
        condition = self.condition(source, side)
        return self.decode_latents(lambda level, _: latents[level], condition)

    @torch.no_grad()
    def stream(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield the targets of `sample` a few at a time, `[k, N, C, D, H, W]`, so that memory does not grow with n.

        The noise of a target does not depend on how many are drawn at once. Errors are raised when the first targets
        are drawn.

        Raises:
            ConfigError: n is below 1, or the temperature is negative.
            InputError: an input has the wrong shape, dtype or values.
        """
        if n < 1 or not 0 <= temperature < float("inf"):
            raise ConfigError(f"{n} samples at temperature {temperature:g}; give at least 1 at 0 or more")
        self.check_inputs(source, side)
        condition = self.condition(source, side)
        at_once = max(1, SAMPLES_AT_ONCE // len(source))
        for start in range(0, n, at_once):
            count = min(at_once, n - start)
            # Temperature 0 takes no noise, so it leaves the global generator as it is.
            seeds = sample_seeds(count, generator) if temperature else [0] * count
            drawn = self.draw(condition.repeat(count), temperature, SampleGenerators(seeds))
            if self.spec.dequantisation == "uniform":
                drawn = self.spec.bin_width * torch.floor(drawn / self.spec.bin_width)
            yield drawn.view(count, *condition.mean.shape)

    def source_log_prob(self, source: Tensor) -> Tensor:
        """Return `log p(source)` in nats, `[N]`, of a source that is a flow.

        Raises:
            ConfigError: the source is an encoder, which has no density.
            InputError: the source has the wrong shape, dtype or values.
        """
        if self.source.glow is None:
            raise ConfigError("log p(source) of a flow with source: encoder; choose source: glow")
        self.check_inputs(source, None)
        return self.source.glow.log_prob(without_detail(source, self.source_channels))

    @torch.no_grad()
    def mean(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the mean model's image `[N, C, D, H, W]`; zeros without a mean model."""
        if self.spec.mean == "none":
            return source.new_zeros(len(source), self.target_channels, *self.shape)
        with torch.autocast(source.device.type, enabled=False):  # the subtracted image must be the same everywhere
            image: Tensor = self.mean_model(source, side)
        return image

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the point estimate `[N, C, D, H, W]`, by the spec's prediction.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self.check_inputs(source, side)
        return predict(self, source, side, self.spec.prediction)

    def condition(
        self,
        source: Tensor,
        side: Tensor | None = None,
        mean: Tensor | None = None,
        spread: Tensor | None = None,
        *,
        train_source: bool = True,
        noise: bool = False,
    ) -> Condition:
        """Compute the condition of the target's flow from source and side values.

        Args:
            source: `[N, C or 2C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.
            mean: mean image in place of the mean model's, `[N, C, D, H, W]`.
            spread: unit of the residual in place of the spread map's, `[N, 1, D, H, W]`; used inside the brain.
            train_source: whether gradients reach the source network.
            noise: whether a source flow sees the source with `source_noise`; mean and spread never do.

        Raises:
            ShapeError: a volume is not of the model's size.
            ConfigError: a mean image is given to a flow without a mean.
        """
        self.check.volume(source, "source")
        side = side_values(side, source, self.side_features)
        if mean is not None and self.spec.mean == "none":
            raise ConfigError("a mean image was given to a flow with mean: none; leave it out, or choose a mean model")
        mean = self.mean(source, side) if mean is None else mean
        self.check.volume(mean, "mean", len(source))
        embedding = None if self.side_tokens is None else self.side_tokens(side)
        source = seen = without_detail(source, self.source_channels)
        if noise and self.spec.has_source_density:
            seen = source + self.spec.source_noise * standard_noise(tuple(source.shape), source)
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_source):
            code = self.source(
                seen,
                mean if self.spec.mean != "none" else None,
                embedding if self.spec.side_in_context else None,
            )
        person = None if self.person is None else self.person(person_values(source, side))
        inside = foreground(source)
        spread = self.spread(inside, source, side) if spread is None else spread
        self.check.volume(spread, "spread", len(source))
        scale = torch.where(inside, spread, self.spread.scale).to(mean.dtype)
        whitening = None if self.whitening is None else self.whitening.weights(inside)
        return Condition(mean, scale, whitening, inside, code.features, code.maps, embedding, person, code.log_prob)

    def density(self, target: Tensor, condition: Condition) -> tuple[Tensor, Encoding, list[Tensor]]:
        """Return `log p(target | condition)` in nats `[N]`, the encoding, and the prior's term of each level.

        The law of the directions belongs to the coarsest level's term.
        """
        code = self.encoding(target, condition)
        standardised, log_scales = zip(*self.standardise_with_scales(code, condition), strict=True)
        parts = [white_log_prob(e) - sum_per_sample(s) for e, s in zip(standardised, log_scales, strict=True)]
        if self.base is not None:
            parts[-1] = parts[-1] + self.base.log_ratio(joined(standardised), condition.person)
        return code.log_det + torch.stack(parts).sum(0), code, parts

    def standardise_with_scales(self, code: Encoding, condition: Condition) -> list[tuple[Tensor, Tensor]]:
        """Return the standardised latents e of each level, finest first, and the log-scales of their priors."""
        return [
            self.prior(level).standardise(z, self.prior_context(level, code.coarser[level], condition))
            for level, z in enumerate(code.latents)
        ]

    def draw(self, condition: Condition, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw one target per condition, `[N, C, D, H, W]`; gradients pass."""
        return self.decode_standardised(self.draw_latents(condition, temperature, generator), condition)

    def draw_latents(
        self, condition: Condition, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Draw the standardised latents of one target per condition, finest first; zeros at temperature 0."""
        count, like = len(condition.mean), upcast(condition.mean)
        if temperature == 0:
            e = like.new_zeros(count, self.latent_count)
        elif self.base is None:
            e = temperature * standard_noise((count, self.latent_count), like, generator)
        else:
            e = temperature * self.base.sample(count, like, condition.person, generator)
        return separated(e, self.target_channels, self.shape, self.spec.levels)

    @property
    def latent_count(self) -> int:
        """Number of latents of one target, which is also its number of values."""
        return self.target_channels * prod(self.shape)

    def decode_standardised(self, latents: Sequence[Tensor], condition: Condition) -> Tensor:
        """Return the target `[N, C, D, H, W]` with these standardised latents.

        The levels are decoded coarsest first, because a prior may depend on the coarser latents.
        """

        def latent_of(level: int, coarser: Tensor | None) -> Tensor:
            return self.prior(level).restore(latents[level], self.prior_context(level, coarser, condition))

        return self.decode_latents(latent_of, condition)

    def encoding(self, target: Tensor, condition: Condition) -> Encoding:
        """Return the latents of a target with the inputs of the priors; log-det in the target's unit."""
        self.check.volume(target, "target", len(condition.mean))
        residual, log_det = self.residual(target, condition)
        code = self.flow.encode(residual, condition.maps)
        return code._replace(log_det=code.log_det + log_det)

    def prior_context(self, level: int, coarser: Tensor | None, condition: Condition) -> PriorContext:
        """Return the context of a level's prior."""
        return PriorContext(condition.features[level], coarser, condition.side)

    def prior(self, level: int) -> LevelPrior:
        """Return the prior of a level, 0 the finest."""
        prior = self.priors[level]
        assert isinstance(prior, LevelPrior)
        return prior

    def check_inputs(
        self,
        source: Tensor,
        side: Tensor | None,
        target: Tensor | None = None,
        latents: Sequence[Tensor] | None = None,
    ) -> None:
        """Check shape, dtype and values of all inputs; NaN is allowed in `side` alone.

        Args:
            source: `[N, C or 2C, D, H, W]`.
            side: `[N, S]`, NaN where unknown; None if all is.
            target: `[N, C, D, H, W]`.
            latents: one per level, finest first.

        Raises:
            InputError: an input has the wrong shape, dtype or values.
        """
        self.check(next(self.parameters()), source, side, target=target, latents=latents)

    def decode_latents(self, choose: Callable[[int, Tensor | None], Tensor], condition: Condition) -> Tensor:
        """Return the target `[N, C, D, H, W]` whose latent of each level is `choose(level, coarser)`."""
        residual = self.flow.decode(choose, condition.maps)[0]
        if self.whitening is not None:
            residual = self.whitening.inverse(residual, condition.whitening)[0]
        return residual * condition.scale + condition.mean

    def residual(self, target: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the flow's input and its log-determinant: the residual in units of the spread map, whitened."""
        residual = upcast(target - condition.mean) / condition.scale
        log_det = -sum_per_sample(upcast(condition.scale).log().expand_as(target))
        if self.whitening is None:
            return residual, log_det
        white, term = self.whitening(residual, condition.whitening)
        return white, log_det + term
