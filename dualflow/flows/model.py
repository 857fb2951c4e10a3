"""DualFlow: p(target | source, side information) as one exact, sampleable density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from math import log, prod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.errors import ConfigError, ShapeError
from dualflow.flows.base_distributions import LowRankGaussian, StandardNormal
from dualflow.flows.bijection import wide
from dualflow.flows.dequantization import prepared
from dualflow.flows.latent_sampling import LATENT_TOOLS
from dualflow.flows.mean_models import MEANS
from dualflow.flows.multiscale import Code, FlowMaps, MultiScaleFlow, level_channels, level_shapes
from dualflow.flows.objective import EVALUATION_SEED, objective
from dualflow.flows.prior import LevelChannels, LevelPrior, PriorContext
from dualflow.flows.rng import standard_noise, uniform_noise
from dualflow.flows.side_information import SideDiscriminator, SideTokens
from dualflow.flows.source import SOURCES, GlowSource
from dualflow.flows.spec import FlowSpec

SIDE_EMBEDDING = 8
# Samples decoded together: few volumes at a time leave the processor waiting.
SAMPLES_AT_ONCE = 8
# What passes through the flow at once in its initialisation: 64 scans at 4 mm, 8 at 2 mm. Memory does not grow with the
# grid, and the moments that are set vary little from this many voxels on.
INITIALISATION_VOXELS = 64 * 48 * 56 * 48


class Condition(NamedTuple):
    """Everything the flow of the target is conditioned on, computed once per batch.

    Attributes:
        mean: `[N, C, D, H, W]`, in the target's unit.
        features: one source feature map per level, finest first.
        maps: what the pieces of each step see of the source.
        side: embedding `[N, E]`, or None.
        source_log_prob: log p(source) in nats `[N]`, or None.
    """

    mean: Tensor
    features: list[Tensor]
    maps: FlowMaps
    side: Tensor | None
    source_log_prob: Tensor | None

    def repeat(self, count: int) -> Condition:
        """The same conditions `count` times along the batch axis."""
        done: dict[int, Tensor] = {}

        def repeated(tensor: Tensor) -> Tensor:
            # Pieces share maps: each is repeated once.
            if id(tensor) not in done:
                done[id(tensor)] = tensor.repeat(count, *[1] * (tensor.dim() - 1))
            return done[id(tensor)]

        return Condition(
            repeated(self.mean),
            [repeated(feature) for feature in self.features],
            [[{name: repeated(seen) for name, seen in step.items()} for step in level] for level in self.maps],
            None if self.side is None else repeated(self.side),
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

    spec: FlowSpec
    discriminators: nn.ModuleList

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

        # Set by whoever trains; everything is as at the end of a training until then.
        self.progress = 1.0
        self.mean_model = MEANS[spec.mean](shape, side_features, source_channels).requires_grad_(False)
        self.side_tokens = SideTokens(side_features, embedding, spec.side_dropout) if side_features else None
        self.source = SOURCES[spec.source](
            spec, source_channels, target_channels * has_mean, embedding * spec.side_in_context
        )
        self.flow = MultiScaleFlow(spec, target_channels, self.source.map_channels)
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
            mask: `[N, C, D, H, W]`, bool; outside of it the target is replaced by noise of a known law.
            mean: mean image to use in place of the mean model's, such as one cross-fitted without these people,
                whose residuals are as large as those of new people.

        Returns:
            `loss`, and every term by its name: see `objective`.
        """
        return objective(self, target, source, self.known_side(source, side), mask, mean)

    def set_progress(self, share: float) -> None:
        """Tell how much of the training is done, 0 to 1, which what is scheduled in an objective goes by."""
        self.progress = share

    def log_prob(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `log p(target | source, side)` in nats, `[N]`."""
        return self.density(target, self.condition(source, self.known_side(source, side)))[0]

    def log_mass(
        self,
        target: Tensor,
        source: Tensor,
        side: Tensor | None = None,
        draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Lower bound of `log P(target | source, side)` in nats, `[N]`, for a target of multiples of `bin_width`.

            log P(y) = log int_bin p(v) dv >= E_u log p(y + w u) + M log w,    u uniform on [0, 1)^M, w = bin_width

        The expectation is a mean over `draws` (Theis et al. 2016; Lu & Huang 2020, section 4.2).

        Raises:
            ConfigError: the flow was not built for integers.
        """
        if draws < 1:
            raise ConfigError(f"log_mass of {draws} draws; give at least 1")
        if self.spec.dequantisation == "none":
            raise ConfigError("log_mass is for targets that are dequantised; choose dequantisation: uniform")
        condition, width = self.condition(source, self.known_side(source, side)), self.spec.bin_width
        terms = [self.density(target + width * uniform_noise(target, generator), condition)[0] for _ in range(draws)]
        return torch.stack(terms).mean(dim=0) + target[0].numel() * log(width)

    def encode(self, target: Tensor, source: Tensor, side: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the latents, finest first, and `log |det dz/dtarget|`, `[N]`."""
        code = self._encode(target, self.condition(source, self.known_side(source, side)))
        return code.latents, code.log_det

    def decode(self, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the target `[N, C, D, H, W]` whose latents these are."""
        if len(latents) != self.spec.levels:
            raise ShapeError(f"{len(latents)} latents for {self.spec.levels} levels; give what encode returns")
        condition = self.condition(source, self.known_side(source, side))
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

        `latents` names what is done to drawn latents (a row of LATENT_TOOLS) in place of the spec's choice; with any
        but `none` the draws are no longer those of `log_prob`.

        Raises:
            ConfigError: `latents` has no row, n is below 1, or the temperature is negative.
        """
        if latents is not None and latents not in LATENT_TOOLS:
            raise ConfigError(f"unknown latents '{latents}'; choose from: {', '.join(LATENT_TOOLS)}")
        if n < 1 or temperature < 0:
            raise ConfigError(f"{n} samples at temperature {temperature:g}; give at least 1 at 0 or more")
        condition = self.condition(source, self.known_side(source, side))
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
        with torch.autocast(source.device.type, enabled=False):  # what is subtracted must be the same image everywhere
            image: Tensor = self.mean_model(source, self.known_side(source, side))
        return image

    def predict(self, source: Tensor, side: Tensor | None, kind: str) -> Tensor:
        """Return one image `[N, C, D, H, W]` by the prediction named `kind`, a row of PREDICTIONS.

        What is drawn for it comes from a seed that the source gives: a prediction is a function of its inputs.
        """
        if kind not in PREDICTIONS:
            raise ConfigError(f"unknown prediction '{kind}'; choose from: {', '.join(PREDICTIONS)}")
        if kind == "mean" and self.spec.mean == "none":
            raise ConfigError("prediction 'mean' of a flow with mean: none; choose temperature0, or sample_mean")
        return PREDICTIONS[kind](self, source, side)

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the one best image `[N, C, D, H, W]`, by the spec's prediction."""
        return self.predict(source, side, self.spec.prediction)

    @torch.no_grad()
    def explained(
        self, target: Tensor, source: Tensor, side: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Share of each level's latent variance that the prior's mean explains, `[L]`, finest first.

            1 - sum w |z - mean|^2 / sum w |z|^2,    w: share of the mask in the latent's voxel

        0: no better than the mean 0 of a standard normal, and it may be worse; 1: the latent follows from source, side
        and coarser latents. What all people have in common is explained too: compare with another's source.
        """
        target = prepared(target, mask, self.spec, torch.Generator().manual_seed(EVALUATION_SEED))
        condition = self.condition(source, self.known_side(source, side))
        code, shares = self._encode(target, condition), []
        for level, z in enumerate(code.latents):
            mean, _ = self._prior(level).mean_and_log_scale(self._evidence(level, code.coarser[level], condition), z)
            inside = torch.ones_like(target) if mask is None else mask.to(target.dtype)
            weight = F.avg_pool3d(inside[:, :1], 2 ** (level + 1))
            shares.append(1 - (weight * wide(z - mean).square()).sum() / (weight * wide(z).square()).sum())
        return torch.stack(shares)

    @torch.no_grad()
    def initialize(
        self,
        target: Tensor,
        source: Tensor,
        side: Tensor | None = None,
        mask: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> None:
        """Set actnorms and the low-rank base from training scans, once, before training and before DDP wraps the model.

        The more scans the better: actnorms take their moments from as many as pass through the flow at once, the base
        its principal components from all.
        """
        target, known = prepared(target, mask, self.spec, training=True), self.known_side(source, side)
        count, last = max(1, INITIALISATION_VOXELS // prod(self.shape)), self.spec.levels - 1
        if isinstance(self.source, GlowSource):
            some = source[:count]
            self.source.initialize(some + self.spec.source_noise * standard_noise(tuple(some.shape), some))
        prior, latents = self._prior(last), list[Tensor]()
        apply = self.flow.initialize
        for rows in (slice(start, start + count) for start in range(0, len(target), count)):
            condition = self.condition(source[rows], known[rows], None if mean is None else mean[rows])
            code = apply(self._residual(target[rows], condition), condition.maps)
            e, _ = prior.standardise(code.latents[last], self._evidence(last, None, condition))
            latents.append(e.flatten(1))
            apply = self.flow.encode
        prior.base.initialize(torch.cat(latents))

    def condition(self, source: Tensor, side: Tensor, mean: Tensor | None = None) -> Condition:
        """Compute what the target's flow is conditioned on; the target itself is no part of it.

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
        frozen = self.training and self.progress < self.spec.source_frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            code = self.source(
                source,
                mean if self.spec.mean != "none" else None,
                embedding if self.spec.side_in_context else None,
            )
        return Condition(mean, code.features, code.maps, embedding, code.log_prob)

    def density(self, target: Tensor, condition: Condition) -> tuple[Tensor, Code, list[Tensor]]:
        """Return `log p(target | condition)` in nats, `[N]`, the code it was computed from, and each level's part."""
        code = self._encode(target, condition)
        parts = [
            self._prior(level).log_prob(z, self._evidence(level, code.coarser[level], condition))
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
        tool = self.spec.latents if latents is None else latents

        def choose(level: int, coarser: Tensor | None) -> Tensor:
            shape = condition.features[level].shape
            like = wide(condition.mean).new_empty(shape[0], channels[level], *shape[2:])
            evidence = self._evidence(level, coarser, condition)
            return self._prior(level).sample(evidence, like, temperature, generator, tool)

        return self._decode(choose, condition)

    def known_side(self, source: Tensor, side: Tensor | None) -> Tensor:
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

    def _encode(self, target: Tensor, condition: Condition) -> Code:
        self._check(target, self.target_channels, "target")
        code = self.flow.encode(self._residual(target, condition), condition.maps)
        return code._replace(log_det=code.log_det - target[0].numel() * log(self.spec.residual_scale))

    def _decode(self, choose: Callable[[int, Tensor | None], Tensor], condition: Condition) -> Tensor:
        return self.flow.decode(choose, condition.maps)[0] * self.spec.residual_scale + condition.mean

    def _residual(self, target: Tensor, condition: Condition) -> Tensor:
        return wide(target - condition.mean) / self.spec.residual_scale

    def _evidence(self, level: int, coarser: Tensor | None, condition: Condition) -> PriorContext:
        return PriorContext(condition.features[level], coarser, condition.side)

    def _prior(self, level: int) -> LevelPrior:
        prior = self.priors[level]
        assert isinstance(prior, LevelPrior)
        return prior

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


def _temperature0(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return flow.sample(source, side, temperature=0.0)[0]


def _one_sample(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return _person_by_person(flow, source, side, 1)


def _sample_mean(flow: DualFlow, source: Tensor, side: Tensor | None) -> Tensor:
    return _person_by_person(flow, source, side, flow.spec.prediction_samples)


def _person_by_person(flow: DualFlow, source: Tensor, side: Tensor | None, n: int) -> Tensor:
    """Mean of n samples of each person, `[N, C, D, H, W]`.

    Each person's noise comes from a seed that is a digest of that person's source: it does not depend on who else is in
    the batch, and different people have different noise, so that it averages out over a study.
    """
    means = []
    for index, one in enumerate(torch.split(source, 1)):
        digest = sha256(one.detach().cpu().float().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
        own = None if side is None else side[index : index + 1]
        means.append(flow.sample(one, own, n, generator=generator).mean(dim=0))
    return torch.cat(means)


PREDICTIONS: dict[str, Callable[[DualFlow, Tensor, Tensor | None], Tensor]] = {
    "mean": DualFlow.mean,
    "temperature0": _temperature0,
    "one_sample": _one_sample,
    "sample_mean": _sample_mean,
}
