"""FlowSpec: the independent choices that make a flow, checked at birth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from dualflow.errors import ConfigError

POSITIVE = (
    "levels", "residual_scale", "log_scale_bound", "prior_scale_bound", "context_channels", "bin_width",
    "prediction_samples",
)  # fmt: skip


@dataclass(frozen=True)
class FlowSpec:
    """Everything that decides which conditional flow is built, and its objective; a named combination is in PRESETS.

    Attributes:
        levels: squeezes of the flow; a volume must divide by `2**levels`.
        steps: steps of flow (actnorm, 1x1x1, injector, coupling) per level, finest first.
        hidden: width of the coupling networks per level.
        squeeze: `plain` permutation or orthonormal `haar` wavelet.
        source: what turns the source into context: `glow`, an exact flow of its own, or `encoder`, a feature network.
        context: which of the source's maps the pieces of a step see: `none`, the `level`'s features, or what belongs to
            that `step` (the glow source's activations, or a feature map of its own from the encoder).
        actnorm: `plain` or `conditional` on the source.
        mixing: `lu` 1x1x1 or `conditional_lu`, which the source turns further.
        injector: affine transform of all channels by the source alone, in every step.
        coupling: `affine` or `additive`; sees the source's maps unless context is none.
        transition_steps: steps of actnorm and mixing without context behind every squeeze.
        attention: invertible attention behind the steps of every level: `none`, `imap`, or `itrans`.
        log_scale_bound: largest |log s| of one affine coupling or injector.
        context_channels: width of the encoder's features at the finest level; three times wider with every level.
        prior: of each level: `standard` normal, `split` (Gaussian given the coarser target latents), or `relation`
            (Gaussian given the source's features of that level).
        prior_coarser: whether `relation` sees the coarser target latents too.
        prior_mean: whether the prior's mean is learnt; otherwise it is 0.
        prior_scale: whether the prior's scale is learnt; otherwise it is 1.
        prior_scale_bound: largest |log sigma| of a learnt prior scale.
        prior_kernel: edge of the prior's one convolution, in voxels.
        prior_leaky: LeakyReLU on the prior's output, as in the reference code; squeezes negative means.
        low_rank: rank of the covariance factors of the coarsest level; 0 for independent latents.
        low_rank_shrinkage: share of the variance found in training latents that the factors start with.
        mean: data-level shift: `none`, `network` or closed-form `local_linear`.
        residual_scale: unit in which the flow sees `target - mean`, in target units (SUVR).
        dequantisation: `none` for real-valued targets, `uniform` for integers and other multiples of `bin_width`.
        bin_width: distance of neighbouring values of a target that is dequantised, in target units.
        noise: standard deviation of the Gaussian noise added to the target in training, in target units (SUVR): the
            floor of every density.
        background_noise: standard deviation of the known law that fills the target outside the mask, in target units.
        source_noise: standard deviation of the Gaussian noise added to the source while its own flow is trained.
        side_in_context: side information joins the source's features, and so reaches every level; otherwise it
            enters the coarsest level's prior only.
        side_dropout: share of known side values, and of whole rows, hidden in training.
        nll_weight: weight of the target's negative log-likelihood in the objective, per voxel.
        source_nll_weight: weight lambda of the source flow's own negative log-likelihood.
        discriminator_weight: weight of the discriminators that keep side information out of the finer levels.
        decode_l1: weight of the mean absolute error between the target and a decode of drawn latents.
        decode_temperature: temperature of those latents; at 0 they are the prior's means.
        source_pretrain: share of the training steps for which an encoder learns to predict the target before the flow.
        source_frozen: share of the flow's training steps for which the source is held as it is.
        prediction: the point estimate: the `mean` model's image, the decode at `temperature0`, `one_sample`, or
            `sample_mean`.
        prediction_samples: samples that `sample_mean` averages.
        latents: what samplers do to drawn latents: `none`; SRFlow's normalisation over `global`, `local` or `spatial`
            sets; or PU-Flow's `interpolate` between neighbours.
    """

    levels: int
    steps: tuple[int, ...]
    hidden: tuple[int, ...]
    source: Literal["glow", "encoder"]
    context: Literal["none", "level", "step"]
    prior: Literal["standard", "split", "relation"]
    squeeze: Literal["plain", "haar"] = "plain"
    actnorm: Literal["plain", "conditional"] = "plain"
    mixing: Literal["lu", "conditional_lu"] = "lu"
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
    low_rank_shrinkage: float = 0.7
    mean: Literal["none", "network", "local_linear"] = "none"
    residual_scale: float = 1.0
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
    source_pretrain: float = 0.0
    source_frozen: float = 0.0
    prediction: Literal["mean", "temperature0", "one_sample", "sample_mean"] = "temperature0"
    prediction_samples: int = 10
    latents: Literal["none", "global", "local", "spatial", "interpolate"] = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming field, value and choices."""
        hints = get_type_hints(FlowSpec)
        for field in fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name])
        for name in POSITIVE:
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} = 0: expected more than 0")
        for name in ("steps", "hidden"):
            if len(getattr(self, name)) != self.levels:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected one entry per level ({self.levels})")
        for name in ("side_dropout", "low_rank_shrinkage", "source_pretrain", "source_frozen"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 0 and below 1")
        if self.prior_kernel % 2 == 0:
            raise ConfigError(f"prior_kernel = {self.prior_kernel}: expected an odd number")
        for wrong, message in self._contradictions():
            if wrong:
                raise ConfigError(message)

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """Combinations that mean nothing, each with its remedy."""
        yield (
            self.prior != "standard" and not (self.prior_mean or self.prior_scale),
            f"prior = {self.prior!r} with neither prior_mean nor prior_scale learns nothing; choose prior: standard",
        )
        yield (
            bool(self.discriminator_weight) and self.side_in_context,
            "discriminator_weight > 0 needs side_in_context: false, or side enters where it is hunted",
        )
        for name, asks in (
            ("actnorm: conditional", self.actnorm == "conditional"),
            ("mixing: conditional_lu", self.mixing == "conditional_lu"),
            ("injector: true", self.injector),
        ):
            yield asks and self.context == "none", f"{name} needs the source; choose context: level, or step"
        yield (
            self.prior != "relation" and self.context == "none",
            f"source {self.source!r} is used by nothing; choose prior: relation, or context: level",
        )
        yield (
            self.source == "glow" and (self.source_pretrain > 0 or self.source_frozen > 0),
            "source_pretrain and source_frozen are an encoder's; choose source: encoder",
        )
        yield (
            self.source == "encoder" and self.source_nll_weight > 0,
            "source_nll_weight needs a source with a density; choose source: glow, or weight 0",
        )
        yield (
            self.prediction == "mean" and self.mean == "none",
            "prediction = 'mean' needs a mean model; choose mean: local_linear, or prediction: temperature0",
        )
        yield (
            not (self.nll_weight or self.decode_l1),
            "nll_weight = 0 and decode_l1 = 0 leave nothing to learn; give one of them a weight",
        )

    def replace(self, **options: Any) -> Self:
        """Return this choice with fields replaced, as a configuration file names them.

        Raises:
            ConfigError: a field is unknown or its value is not accepted.
        """
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(known)}"
                raise ConfigError(f"unknown flow option '{name}'; {hint}")
        # YAML has lists where this has tuples.
        values: dict[str, Any] = {}
        for name, value in options.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values, which `from_dict` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown, missing, or its value is not accepted.
        """
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"flow description: {error}; expected the fields of FlowSpec") from None


def _check(name: str, value: object, hint: Any) -> None:
    """Raise unless `value` is of the annotated kind; numbers must not be negative."""
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
