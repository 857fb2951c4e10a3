"""The pieces and whole flows that the contract runs over; a new mechanism is a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dualflow.flows.actnorm import ActNorm
from dualflow.flows.bijection import Bijection, Sequential
from dualflow.flows.coupling import AdditiveCoupling, AffineCoupling
from dualflow.flows.mixing import InvertibleMixing, random_rotations
from dualflow.flows.model import DualFlow
from dualflow.flows.multiscale import Level, MultiScaleFlow, level_channels, level_shapes
from dualflow.flows.network import Conditioner
from dualflow.flows.presets import preset
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import HaarSqueeze, Squeeze

SMALL = {"levels": 2, "steps": [2, 2], "hidden": [6, 7]}
SIDE = 3
SHAPE = (4, 4, 4)


class FlatMultiScale(Bijection):
    """A multi-scale flow as one bijection: latents flattened and joined, the context pooled down to each level."""

    def __init__(self, flow: MultiScaleFlow, spec: FlowSpec) -> None:
        super().__init__()
        self.flow, self.spec = flow, spec

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents, _, log_det = self.flow.encode(x, self._contexts(context))
        return torch.cat([z.flatten(1) for z in latents], dim=1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        channels, shapes = level_channels(1, self.spec.levels), level_shapes(SHAPE, self.spec.levels)
        sizes = [count * torch.Size(shape).numel() for count, shape in zip(channels, shapes, strict=True)]
        parts = z.split(sizes, dim=1)
        return self.flow.decode(
            lambda level, _: parts[level].view(len(z), channels[level], *shapes[level]), self._contexts(context)
        )

    def _contexts(self, context: Tensor | None) -> Sequence[Tensor | None]:
        if context is None:
            return [None] * self.spec.levels
        return [context[:, :, :: 2**level, :: 2**level, :: 2**level] for level in range(self.spec.levels)]


def _mixing(channels: int) -> InvertibleMixing:
    return InvertibleMixing(random_rotations(channels, 1, closing=False)[0])


def _multiscale(name: str, context: int) -> FlatMultiScale:
    spec = preset(name, **SMALL)
    return FlatMultiScale(MultiScaleFlow(spec, 1, [context] * spec.levels), spec)


# name: (factory, size of one sample, size of its context or None)
PIECES: dict[str, tuple[Callable[[], Bijection], tuple[int, ...], tuple[int, ...] | None]] = {
    "actnorm": (lambda: ActNorm(3), (3, 4, 4, 4), None),
    "mixing": (lambda: _mixing(4), (4, 4, 4, 4), None),
    "squeeze": (Squeeze, (2, 4, 4, 4), None),
    "haar": (HaarSqueeze, (2, 4, 4, 4), None),
    "affine": (lambda: AffineCoupling(Conditioner(2, 4, 5), 0.5), (4, 4, 4, 4), None),
    "affine in context": (lambda: AffineCoupling(Conditioner(2, 4, 5), 1.0), (4, 4, 4, 4), (5, 4, 4, 4)),
    "additive in context": (lambda: AdditiveCoupling(Conditioner(2, 2, 5)), (4, 4, 4, 4), (5, 4, 4, 4)),
    "sequential": (lambda: Sequential([Squeeze(), ActNorm(8), _mixing(8), HaarSqueeze()]), (1, 4, 4, 4), None),
    "plain level": (lambda: Level(preset("dual_glow", **SMALL), 0, 1), (1, 4, 4, 4), None),
    "haar level in context": (lambda: Level(preset("dualflow", **SMALL), 0, 1, 3), (1, 4, 4, 4), (3, 2, 2, 2)),
    "dual_glow multi-scale": (lambda: _multiscale("dual_glow", 0), (1, *SHAPE), None),
    "dualflow multi-scale": (lambda: _multiscale("dualflow", 3), (1, *SHAPE), (3, 2, 2, 2)),
}

# Variations that put every row of every table into some flow.
FLOWS: dict[str, FlowSpec] = {
    "dual_glow": preset("dual_glow", **SMALL),
    "dualflow": preset("dualflow", **SMALL, low_rank=3),
    "dualflow, no mean": preset("dualflow", **SMALL, low_rank=3, mean="none", temperature0_l1=1.0),
    "split prior": preset("dualflow", **SMALL, low_rank=0, mean="none", prior="split", prior_mean=True),
    "standard prior, additive": preset("dualflow", **SMALL, low_rank=2, prior="standard", coupling="additive"),
    "source flow in couplings": preset(
        "dual_glow", **SMALL, coupling_context="level", side_in_context=True, discriminator_weight=0.0, low_rank=2
    ),
    "coarser latents": preset("dual_glow", **SMALL, prior_coarser=True, prior_scale=True, prior_leaky=True),
}


def build(name: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> DualFlow:
    """A small flow in float64."""
    torch.manual_seed(seed)
    return DualFlow(FLOWS[name], shape=shape, side_features=SIDE).double()


def batch(count: int = 3, seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """Random target, source and side, of which some is unknown."""
    generator = torch.Generator().manual_seed(seed)
    target, source = torch.rand(2, count, 1, *shape, generator=generator, dtype=torch.float64)
    side = torch.randn(count, SIDE, generator=generator, dtype=torch.float64)
    side[0, 1] = torch.nan
    return target, source, side
