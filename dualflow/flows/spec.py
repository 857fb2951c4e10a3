"""FlowSpec: the independent choices that make a flow, checked at birth."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from dualflow.errors import ConfigError


@dataclass(frozen=True)
class FlowSpec:
    """Everything that decides which conditional flow is built; a named combination is a row of PRESETS.

    Attributes:
        levels: squeezes of the flow; a volume must divide by `2**levels`.
        steps: steps (actnorm, 1x1x1, coupling) per level, finest first.
        hidden: width of the coupling networks per level.
        squeeze: `plain` permutation or orthonormal `haar` wavelet.
        coupling: `affine` or `additive`.
        coupling_context: whether couplings see the `level`'s source features, or `none`.
        log_scale_bound: largest |log s| of one affine coupling.
        source: what turns the source into context: `glow`, an exact flow of its own, or `encoder`, a feature network.
        context_channels: width of the encoder's features.
        source_noise: standard deviation of the Gaussian noise added to the source while its own flow is trained.
        source_nll_weight: weight lambda of the source flow's own negative log-likelihood.
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
        noise: standard deviation of the Gaussian noise added to the target in training, in target units (SUVR): the
            floor of every density.
        side_in_context: side information joins the source's features, and so reaches every level; otherwise it
            enters the coarsest level's prior only.
        side_dropout: share of known side values, and of whole rows, hidden in training.
        discriminator_weight: weight of the discriminators that keep side information out of the finer levels.
        temperature0_l1: weight of the mean absolute error of the temperature-0 decode.
    """

    levels: int
    steps: tuple[int, ...]
    hidden: tuple[int, ...]
    squeeze: Literal["plain", "haar"]
    coupling: Literal["affine", "additive"]
    coupling_context: Literal["none", "level"]
    log_scale_bound: float
    source: Literal["glow", "encoder"]
    prior: Literal["standard", "split", "relation"]
    prior_mean: bool
    prior_scale: bool
    prior_kernel: int
    side_in_context: bool
    mean: Literal["none", "network", "local_linear"] = "none"
    residual_scale: float = 1.0
    noise: float = 0.01
    context_channels: int = 12
    source_noise: float = 0.01
    source_nll_weight: float = 0.0
    prior_coarser: bool = False
    prior_scale_bound: float = 2.0
    prior_leaky: bool = False
    low_rank: int = 0
    low_rank_shrinkage: float = 0.7
    side_dropout: float = 0.1
    discriminator_weight: float = 0.0
    temperature0_l1: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming field, value and choices."""
        hints = get_type_hints(FlowSpec)
        for field in fields(self):
            _check(field.name, getattr(self, field.name), hints[field.name])
        for name in ("levels", "residual_scale", "log_scale_bound", "prior_scale_bound", "context_channels"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} = 0: expected more than 0")
        for name in ("steps", "hidden"):
            if len(getattr(self, name)) != self.levels:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected one entry per level ({self.levels})")
        for name in ("side_dropout", "low_rank_shrinkage"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 0 and below 1")
        if self.prior_kernel % 2 == 0:
            raise ConfigError(f"prior_kernel = {self.prior_kernel}: expected an odd number")
        if self.prior != "standard" and not (self.prior_mean or self.prior_scale):
            raise ConfigError(
                f"prior = {self.prior!r} with neither prior_mean nor prior_scale learns nothing; choose prior: standard"
            )
        if self.discriminator_weight and self.side_in_context:
            raise ConfigError(
                "discriminator_weight > 0 needs side_in_context: false, or side enters where it is hunted"
            )
        if self.source == "encoder" and self.prior != "relation" and self.coupling_context == "none":
            raise ConfigError("source 'encoder' is used by nothing; choose prior: relation, or coupling_context: level")

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
