"""FlowSpec: the options of a flow, validated on construction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from dualflow.errors import ConfigError

POSITIVE = (
    "levels", "residual_scale", "log_scale_bound", "prior_scale_bound", "context_channels", "bin_width",
    "prediction_samples",
)  # fmt: skip

LARGEST = {
    "levels": 8, "steps": 128, "hidden": 2048, "transition_steps": 64, "context_channels": 1024, "prior_kernel": 31,
    "low_rank": 65536, "prediction_samples": 10_000,
}  # fmt: skip
"""Largest values of sizes, far above those of published flows; a larger one is a mistake, or would not fit memory."""


@dataclass(frozen=True)
class FlowSpec:
    """The choices that define a conditional flow and its training objective.

    Published combinations and the default are rows of PRESETS. A preset in a configuration file may replace any field.

    Attributes:
        levels: Number of resolution levels. Every spatial size must be divisible by `2**levels`.
        steps: Number of steps of flow (actnorm, 1x1x1 mixing, injector, coupling) of each level, finest first.
        hidden: Width of the coupling networks of each level, finest first.
        squeeze: Downsampling between levels: a `plain` permutation of voxels, or an orthonormal `haar` wavelet.
        source: Network that reads the source image: `glow` is a flow with its own likelihood, `encoder` is a feature
            pyramid, and `glow_pyramid` is a flow whose latents feed a feature pyramid.
        context: Source features that the layers of a step see: `none`, the features of the `level`, or features of the
            `step` (the activations of the same step of the `glow` source, or a feature map per step of a pyramid).
        actnorm: Activation normalisation: `plain`, or `conditional` on the source features.
        mixing: Invertible 1x1x1 convolution: `lu`, or `conditional` with a further source-dependent matrix.
        injector: Adds an affine transform of all channels, with parameters from the source, to every step.
        coupling: Transform of the coupling layers: `affine` or `additive`. It sees the source unless context is `none`.
        transition_steps: Number of steps of actnorm and mixing, without context, after every squeeze.
        attention: Invertible attention after the steps of every level: `none`, `imap` or `itrans`.
        log_scale_bound: Largest absolute log-scale of an affine coupling or injector.
        context_channels: Channels of the encoder's features at the finest level. Each coarser level has three times as
            many.
        prior: Prior of each level's latents: `standard` normal, `split` (Gaussian given the coarser target latents), or
            `relation` (Gaussian given the source features of the level).
        prior_coarser: Lets the `relation` prior depend on the coarser target latents too.
        prior_mean: Learns the mean of the prior. Otherwise the mean is 0.
        prior_scale: Learns the scale of the prior. Otherwise the scale is 1.
        prior_scale_bound: Largest absolute log-scale of a learnt prior.
        prior_kernel: Kernel size of the prior's convolution, in voxels. It must be odd.
        prior_leaky: Applies a LeakyReLU to the prior's mean, as DUAL-GLOW's reference code does. It shrinks negative
            means.
        low_rank: Number of directions of the latents with a law of their own, those of region means. With 0 the latents
            are independent.
        mean: Conditional mean subtracted from the target: `none`, a closed-form `local_linear` regression,
            or the `stacked` regression, which adds harmonised sources and abnormality to it as far as cross-fitting
            supports them.
        residual_scale: Unit of `target - mean` inside the flow, in target units (SUVR).
        spread: Map of that unit: `constant`; `voxel`, the standard deviation of the training residuals in each voxel of
            the brain; or `source`, that map scaled by the person and by how unusual the source is in a voxel.
        whitening: Removes the correlation of neighbouring voxels from `target - mean` before the flow. It is that of a
            stationary field, fitted to the training residuals.
        dequantisation: Noise for discrete targets: `none` for real values, `uniform` for multiples of `bin_width`.
        bin_width: Distance between neighbouring values of a dequantised target, in target units.
        noise: Standard deviation of the Gaussian noise added to the target in training, in target units (SUVR). It
            bounds the density.
        background_noise: Standard deviation of the Gaussian noise that replaces the target outside the mask before the
            target is encoded, in target units. With 0 the background is kept.
        source_noise: Standard deviation of the Gaussian noise added to the source in training, if the source is a flow.
        side_in_context: Adds side information to the source features of every level. Otherwise side information enters
            the prior of the coarsest level only, and through mean image, spread and law of regions.
        side_dropout: Probability of hiding a known side value in training, and of hiding a whole row.
        nll_weight: Weight of the target's negative log-likelihood per voxel.
        source_nll_weight: Weight of the source's negative log-likelihood per voxel, for a source that is a flow.
        discriminator_weight: Weight of the adversarial discriminators that penalise side information in the finer
            levels.
        decode_l1: Weight of the mean absolute error between the target and a decoded sample.
        decode_temperature: Temperature of the sample of `decode_l1`. At 0 its latents are the prior's means.
        interpolation_l1: Weight of the mean absolute error in hidden voxels that interpolated latents fill. A flow that
            is to fill missing voxels needs it.
        source_pretrain: Share of the training steps in which an encoder is first trained to predict the target.
        source_frozen: Share of the flow's training steps in which the source is frozen.
        prediction: Point estimate: the `mean` model's image, the decoded prior mean (`temperature0`), `one_sample`, or
            the `sample_mean`.
        prediction_samples: Number of samples that `sample_mean` averages.
    """

    levels: int
    steps: tuple[int, ...]
    hidden: tuple[int, ...]
    source: Literal["glow", "glow_pyramid", "encoder"]
    context: Literal["none", "level", "step"]
    prior: Literal["standard", "split", "relation"]
    squeeze: Literal["plain", "haar"] = "plain"
    actnorm: Literal["plain", "conditional"] = "plain"
    mixing: Literal["lu", "conditional"] = "lu"
    injector: bool = False
    coupling: Literal["affine", "additive"] = "affine"
    transition_steps: int = 0
    attention: Literal["none", "imap", "itrans"] = "none"
    log_scale_bound: float = 1.0
    context_channels: int = 16
    prior_coarser: bool = False
    prior_mean: bool = True
    prior_scale: bool = True
    prior_scale_bound: float = 2.0
    prior_kernel: int = 3
    prior_leaky: bool = False
    low_rank: int = 0
    mean: Literal["none", "local_linear", "stacked"] = "none"
    residual_scale: float = 1.0
    spread: Literal["constant", "voxel", "source"] = "constant"
    whitening: bool = False
    dequantisation: Literal["none", "uniform"] = "none"
    bin_width: float = 1.0
    noise: float = 0.01
    background_noise: float = 0.3
    source_noise: float = 0.01
    side_in_context: bool = True
    side_dropout: float = 0.1
    nll_weight: float = 1.0
    source_nll_weight: float = 0.0
    discriminator_weight: float = 0.0
    decode_l1: float = 0.0
    decode_temperature: float = 0.0
    interpolation_l1: float = 0.0
    source_pretrain: float = 0.0
    source_frozen: float = 0.0
    prediction: Literal["mean", "temperature0", "one_sample", "sample_mean"] = "temperature0"
    prediction_samples: int = 10

    def __post_init__(self) -> None:
        """Validate every field and their combination.

        Raises:
            ConfigError: a value is not accepted; the message names field, value and choices.
        """
        hints = _field_types()
        for field in fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name])
        for name in POSITIVE:
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} = 0: expected more than 0")
        for name, largest in LARGEST.items():
            if max(_entries(getattr(self, name)), default=0) > largest:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected at most {largest}")
        for name in ("steps", "hidden"):
            if len(getattr(self, name)) != self.levels:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected one entry per level ({self.levels})")
        for name in ("side_dropout", "source_pretrain", "source_frozen"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 0 and below 1")
        if self.prior_kernel % 2 == 0:
            raise ConfigError(f"prior_kernel = {self.prior_kernel}: expected an odd number")
        for contradictory, message in self._contradictions():
            if contradictory:
                raise ConfigError(message)

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """Yield whether the spec has each invalid combination, and its error message."""
        yield (
            self.prior != "standard" and not (self.prior_mean or self.prior_scale),
            f"prior = {self.prior!r} has neither prior_mean nor prior_scale, so it learns nothing; "
            "choose prior: standard",
        )
        yield (
            bool(self.discriminator_weight) and self.side_in_context,
            "discriminator_weight > 0 needs side_in_context: false, because the discriminators penalise side "
            "information in the finer levels",
        )
        for option, chosen in (
            ("actnorm: conditional", self.actnorm == "conditional"),
            ("mixing: conditional", self.mixing == "conditional"),
            ("injector: true", self.injector),
        ):
            yield chosen and self.context == "none", f"{option} needs the source; choose context: level, or step"
        # Two flows without a link tell what a link adds; the mean still depends on the source.
        unlinked = self.source == "glow" and self.mean != "none"
        yield (
            self.prior != "relation" and self.context == "none" and not unlinked,
            f"source {self.source!r} is unused; choose prior: relation, or context: level",
        )
        yield (
            self.has_source_density and (self.source_pretrain > 0 or self.source_frozen > 0),
            "source_pretrain and source_frozen need an encoder; choose source: encoder, or set both to 0",
        )
        yield (
            self.source == "encoder" and self.source_nll_weight > 0,
            "source_nll_weight > 0 needs a source with a density; choose source: glow, or set it to 0",
        )
        yield (
            self.prediction == "mean" and self.mean == "none",
            "prediction = 'mean' needs a mean model; choose mean: stacked, or prediction: temperature0",
        )
        yield (
            self.spread != "constant" and self.mean == "none",
            f"spread = '{self.spread}' needs the residuals of a mean model; choose mean: stacked, or spread: constant",
        )
        yield (
            self.whitening and self.mean == "none",
            "whitening needs the residuals of a mean model; choose mean: stacked, or whitening: false",
        )
        yield (
            self.whitening and self.interpolation_l1 > 0,
            "interpolation_l1 fills latents whose voxels are missing, and whitening predicts known voxels from missing "
            "ones; choose whitening: false",
        )
        yield (
            not (self.nll_weight or self.decode_l1 or self.interpolation_l1),
            "nll_weight = 0, decode_l1 = 0 and interpolation_l1 = 0 leave nothing to learn; set one of them above 0",
        )

    @property
    def has_source_density(self) -> bool:
        """Whether the source is a flow, with its own likelihood."""
        return self.source != "encoder"

    @property
    def has_prior_mean(self) -> bool:
        """Whether the prior has a mean that the source or coarser latents determine."""
        return self.prior != "standard" and self.prior_mean

    def replace(self, /, **options: Any) -> Self:
        """Return the spec with fields replaced; lists from YAML become tuples.

        Raises:
            ConfigError: a field is unknown or its value is not accepted.
        """
        names = [field.name for field in fields(self)]
        for name in options:
            if name not in names:
                close = get_close_matches(name, names, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(names)}"
                raise ConfigError(f"unknown flow option '{name}'; {hint}")
        return replace(self, **_tuples(options))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values, for `from_dict`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec from the output of `to_dict`.

        Raises:
            ConfigError: a field is unknown, missing, or its value is not accepted.
        """
        try:
            return cls(**_tuples(values))
        except TypeError as error:
            raise ConfigError(f"flow description: {error}; expected the fields of FlowSpec") from None


def _entries(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Convert lists, as YAML and JSON have them, to tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@cache
def _field_types() -> dict[str, Any]:
    """Types of the fields of FlowSpec by name; the annotations are text, so they are evaluated only once."""
    return get_type_hints(FlowSpec)


def _check(name: str, value: object, hint: Any) -> None:
    """Raise unless `value` has the annotated type; numbers must not be negative."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name} = {value!r}: choose from: {', '.join(get_args(hint))}")
    elif get_origin(hint) is tuple:
        if not isinstance(value, tuple) or not all(type(entry) is int and entry > 0 for entry in value):
            raise ConfigError(f"{name} = {value!r}: expected a list of positive whole numbers")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} = {value!r}: expected true or false")
    elif hint is int:
        if type(value) is not int or value < 0:
            raise ConfigError(f"{name} = {value!r}: expected a whole number, 0 or more")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} = {value!r}: expected a number, 0 or more")
