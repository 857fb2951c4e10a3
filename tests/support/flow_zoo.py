"""Bijections and flows for the contract tests: the rows of all tables, and random combinations of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cache, partial
from random import Random
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dualflow.errors import ConfigError
from dualflow.flows.actnorm import ACTNORMS, ActNorm
from dualflow.flows.attention import ATTENTIONS
from dualflow.flows.bijection import Bijection, Sequential
from dualflow.flows.coupling import COUPLING_TRANSFORMS, Coupling, Injector
from dualflow.flows.field_whitening import LENGTHS, NEIGHBOURS, FieldWhitening
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.level import Level, Step
from dualflow.flows.mixing import MIXINGS, InvertibleMixing, random_rotations
from dualflow.flows.model import DualFlow
from dualflow.flows.multiscale import MultiScaleFlow, level_channels, level_shapes
from dualflow.flows.network import Conditioner
from dualflow.flows.objective import Batch
from dualflow.flows.presets import PRESETS
from dualflow.flows.source import PIECES as STEP_PIECES
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import SQUEEZES

SIDE = 3
# Two attention tokens at each level, and different sizes to detect swapped axes.
SHAPE = (8, 4, 4)
PREDICTED = 8 * 4 * 4 - 2
"""Voxels of SHAPE that a whitening predicts: all but every fourth along each axis."""
BIN_WIDTH = 0.25
TRAINING_STEPS = 200
BATCH = 4
COMBINATIONS = 4
CONTEXT = 5


def small(name: str, **options: Any) -> FlowSpec:
    """Return a small version of a preset: two levels, with two steps and one, and narrow networks."""
    spec = PRESETS[name].spec
    size = {"levels": 2, "steps": [2, 1], "hidden": [6, 7], "context_channels": 4, "low_rank": min(spec.low_rank, 3)}
    return spec.replace(**{**size, "bin_width": BIN_WIDTH, **options})


class FlatStep(Bijection):
    """A step as a bijection: all layers share one context, which has the couplings' hidden width."""

    def __init__(self, name: str) -> None:
        super().__init__()
        spec = small(name)
        self.step = Step(spec, random_rotations(8, 1, closing=False)[0], CONTEXT, CONTEXT * (spec.context != "none"))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.step(x, maps_of(context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.step.inverse(z, maps_of(context))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.step.initialize(x, maps_of(context))


class FlatLevel(Bijection):
    """The finest level, with two steps, as a bijection."""

    def __init__(self, name: str) -> None:
        super().__init__()
        spec = small(name)
        self.level = Level(spec, 0, 1, CONTEXT * (spec.context != "none"))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.level(x, steps_of(context, 2))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.level.inverse(z, steps_of(context, 2))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.level.initialize(x, steps_of(context, 2))


class FlatMultiScale(Bijection):
    """A multi-scale flow as a bijection: latents are flattened and joined, the context is subsampled for each level."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.spec = small(name)
        self.flow = MultiScaleFlow(self.spec, 1, [CONTEXT * (self.spec.context != "none")] * self.spec.levels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        encoding = self.flow.encode(x, self._maps(context))
        return torch.cat([z.flatten(1) for z in encoding.latents], dim=1), encoding.log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        channels, shapes = level_channels(1, self.spec.levels), level_shapes(SHAPE, self.spec.levels)
        sizes = [count * torch.Size(shape).numel() for count, shape in zip(channels, shapes, strict=True)]
        parts = z.split(sizes, dim=1)
        return self.flow.decode(
            lambda level, _: parts[level].view(len(z), channels[level], *shapes[level]), self._maps(context)
        )

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.flow.initialize(x, self._maps(context))
        return self(x, context)[0]

    def _maps(self, context: Tensor | None) -> list[list[Mapping[str, Tensor]]]:
        subsampled = [
            None if context is None else context[..., :: 2**k, :: 2**k, :: 2**k] for k in range(self.spec.levels)
        ]
        return [steps_of(level, count) for level, count in zip(subsampled, self.spec.steps, strict=True)]


class SmallWeights(FieldWhitening):
    """A whitening by the context as weights, made so small that fields stay bounded."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert context is not None
        return super().forward(x, 0.1 * context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert context is not None
        return super().inverse(z, 0.1 * context)


def maps_of(context: Tensor | None) -> Mapping[str, Tensor]:
    """Return the maps of a step with the same context for every layer."""
    return {} if context is None else dict.fromkeys(STEP_PIECES, context)


def steps_of(context: Tensor | None, count: int) -> list[Mapping[str, Tensor]]:
    """Return the maps of a level's steps, with the channels in a different order for each step."""
    return [maps_of(None if context is None else context.roll(step, 1)) for step in range(count)]


def _rotation(channels: int = 4) -> Tensor:
    return random_rotations(channels, 1, closing=False)[0]


def _coupling(name: str) -> Bijection:
    transform = COUPLING_TRANSFORMS[name](0.5)
    return Coupling(Conditioner(2, 2 * transform.parameters_per_channel, CONTEXT), transform)


def _injector(name: str) -> Bijection:
    transform = COUPLING_TRANSFORMS[name](0.5)
    return Injector(Conditioner(CONTEXT, 4 * transform.parameters_per_channel, 6), transform)


Piece = tuple[Callable[[], Bijection], tuple[int, ...], tuple[int, ...] | None]
"""Factory, size of one sample, and size of its context or None."""


def _pieces() -> Iterator[tuple[str, Piece]]:
    """Yield every row of every table of bijections, then every preset's step, level and multi-scale flow."""
    size, context_size = (4, *SHAPE), (CONTEXT, *SHAPE)
    for name, actnorm in ACTNORMS.items():
        yield f"{name} actnorm", (partial(actnorm, 4, CONTEXT), size, None if name == "plain" else context_size)
    for name, mixing in MIXINGS.items():
        yield (
            f"{name} mixing",
            (lambda mixing=mixing: mixing(_rotation(), CONTEXT), size, None if name == "lu" else context_size),
        )
    for name in COUPLING_TRANSFORMS:
        yield f"{name} coupling", (partial(_coupling, name), size, None)
        yield f"{name} coupling in context", (partial(_coupling, name), size, context_size)
        yield f"{name} injector", (partial(_injector, name), size, context_size)
    for name, attention in ATTENTIONS.items():
        yield f"{name} attention", (partial(attention, 4, 0, 2), size, None)
        if name != "none":
            yield f"{name} attention in context", (partial(attention, 4, CONTEXT, 2), size, context_size)
    for name, squeeze in SQUEEZES.items():
        yield f"{name} squeeze", (squeeze, (2, *SHAPE), None)
    yield "field whitening", (SmallWeights, (2, *SHAPE), (NEIGHBOURS + 1, PREDICTED))
    yield "transition step", (lambda: Sequential([ActNorm(4), InvertibleMixing(_rotation())]), size, None)
    for name, row in PRESETS.items():
        half = None if row.spec.context == "none" else (CONTEXT, 4, 2, 2)
        yield f"{name} step", (partial(FlatStep, name), (8, 4, 2, 2), half)
        yield f"{name} level", (partial(FlatLevel, name), (1, *SHAPE), half)
        yield f"{name} multi-scale", (partial(FlatMultiScale, name), (1, *SHAPE), half)


PIECES: dict[str, Piece] = dict(_pieces())

TINY: dict[str, Any] = {"steps": [1, 1], "low_rank": 2}
# Values of numeric fields in random combinations; other numeric fields keep their defaults.
AMOUNTS: dict[str, Sequence[Any]] = {
    "transition_steps": (0, 1),
    "prior_kernel": (1, 3),
    "low_rank": (0, 2),
    "residual_scale": (0.5, 1.0),
    "log_scale_bound": (0.5, 1.0),
    "source_nll_weight": (0.0, 1e-3),
    "discriminator_weight": (0.0, 0.05),
    "decode_l1": (0.0, 0.5),
    "interpolation_l1": (0.0, 0.5),
    "decode_temperature": (0.0, 0.5),
    "source_frozen": (0.0, 0.25),
}


def choices() -> dict[str, Sequence[Any]]:
    """Return the values of every field of FlowSpec that the combinations choose from."""
    hints = get_type_hints(FlowSpec)
    types = {field.name: hints[field.name] for field in fields(FlowSpec)}
    named = {name: get_args(hint) for name, hint in types.items() if get_origin(hint) is Literal}
    return {**named, **{name: (False, True) for name, hint in types.items() if hint is bool}, **AMOUNTS}


def combinations(count: int, covered: Sequence[FlowSpec], seed: int = 0) -> dict[str, FlowSpec]:
    """Draw random valid specs, at least `count`, until every choice is in one of them or in a `covered` spec.

    While choices are missing, only specs with a missing choice are kept.
    """
    random, specs = Random(seed), dict[str, FlowSpec]()
    offered = choices()
    missing = {(name, option) for name, options in offered.items() for option in options}
    missing -= {(name, getattr(spec, name)) for name in offered for spec in covered}
    while missing or len(specs) < count:
        options = {name: random.choice(values) for name, values in offered.items()}
        if missing and missing.isdisjoint(options.items()):
            continue
        try:
            spec = small("dualflow", **{**TINY, **options})
        except ConfigError:
            continue
        if spec.prior != "relation" and spec.context == "none":  # two flows that only a fitted mean would link
            continue
        specs[f"combination {len(specs)}"] = spec
        missing -= set(options.items())
    return specs


NAMED: dict[str, FlowSpec] = {
    **{name: small(name) for name in PRESETS},
    "local linear mean, imap, integers": small(
        "dualflow",
        **TINY,
        context="level",
        mean="local_linear",
        attention="imap",
        dequantisation="uniform",
        prediction="one_sample",
        prior_mean=True,
    ),
}
FLOWS: dict[str, FlowSpec] = {**NAMED, **combinations(COMBINATIONS, list(NAMED.values()))}
# `make test-fast` takes these flows only, because training each takes seconds.
FAST = {"dualflow", "dual_glow"}


def parametrize_flows(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrise a test by the names of flows.

    All tests of a flow run in one xdist worker, so that each flow is trained once.
    """
    params = [
        pytest.param(name, marks=[pytest.mark.xdist_group(name), *([] if name in FAST else [pytest.mark.slow])])
        for name in names
    ]
    return pytest.mark.parametrize("name", params, scope="session")


each_flow = parametrize_flows(FLOWS)


def flows_with(**options: Any) -> list[str]:
    """Return the names of the flows with these options."""
    return [name for name, spec in FLOWS.items() if all(getattr(spec, key) == value for key, value in options.items())]


def build(name: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> DualFlow:
    """Build a small flow in float64."""
    return build_spec(FLOWS[name], seed, shape)


def build_spec(
    spec: FlowSpec, seed: int = 0, shape: tuple[int, int, int] = SHAPE, source_channels: int = 1
) -> DualFlow:
    """Build a flow in float64; its whitening, if it has one, is fitted."""
    torch.manual_seed(seed)
    flow = DualFlow(spec, shape=shape, side_features=SIDE, source_channels=source_channels).double()
    if flow.whitening is not None:
        flow.whitening.set_correlation(torch.tensor([0.4, *[0.6 / len(LENGTHS)] * len(LENGTHS)]))
    return flow


def batch(count: int = 3, seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """Return target, source and side information with an unknown value; the target depends on both."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, *shape, generator=generator, dtype=torch.float64)
    blocks = torch.rand(count, 1, *(size // 2 for size in shape), generator=generator, dtype=torch.float64)
    contrast = 0.5 + torch.rand(count, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    source = contrast * interpolate(blocks, scale_factor=2.0) + 0.1 * torch.rand(noise.shape, generator=generator)
    side = torch.randn(count, SIDE, generator=generator, dtype=torch.float64)
    target = expected_target(source, side) + 0.1 * noise
    side[0, 1] = torch.nan
    return target, source, side


def expected_target(source: Tensor, side: Tensor) -> Tensor:
    """Return the mean of the target of `batch` given source and side information."""
    return source * (1 + 0.3 * side[:, :1, None, None, None]) + source.mean((2, 3, 4), keepdim=True)


def rounded(target: Tensor) -> Tensor:
    """Round to the nearest multiples of BIN_WIDTH."""
    return BIN_WIDTH * (target / BIN_WIDTH).round()


def objective_of(flow: DualFlow) -> FlowObjective:
    """Return a new objective of a flow, with the flow's type and mode."""
    return FlowObjective(flow).to(next(flow.parameters()).dtype).train(flow.training)


def terms(flow: DualFlow, *tensors: Tensor | None, **options: Tensor) -> dict[str, Tensor]:
    """Return loss and terms of a batch under a new objective."""
    return objective_of(flow)(Batch(*tensors, **options))


def trained(name: str) -> DualFlow:
    """Return a copy of a flow after TRAINING_STEPS steps, half of them for a combination, in evaluation mode."""
    return trained_objective(name).flow


def trained_objective(name: str) -> FlowObjective:
    """Return a copy of the objective of `trained`, with trained discriminators.

    Torch's global generator keeps its state, whether the flow is trained now or was before.
    """
    with torch.random.fork_rng(devices=[]):
        return deepcopy(_trained(name))


@cache
def _trained(name: str) -> FlowObjective:
    steps = TRAINING_STEPS if name in PRESETS else TRAINING_STEPS // 2
    objective, (target, source, side) = objective_of(build(name)), batch(steps * BATCH, seed=0)
    pool = (rounded(target) if objective.flow.spec.dequantisation == "uniform" else target, source, side)
    initialize_flow(objective.flow, Batch(*(tensor[:32] for tensor in pool)))
    optimiser = torch.optim.Adam(objective.parameters(), lr=2e-3, fused=True)
    for step in range(steps):
        objective.set_progress(step / steps)
        optimiser.zero_grad()
        objective(Batch(*(tensor[step * BATCH : (step + 1) * BATCH] for tensor in pool)))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimiser.step()
    objective.set_progress(1.0)
    return objective.eval()
