"""Stacks of flow steps of equal size from dualflow, FrEIA and MemCNN, which `step.py` times."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dualflow.flows.level import Level, no_maps
from dualflow.flows.memory import Memory, set_memory
from dualflow.flows.spec import FlowSpec

BATCH, CHANNELS, SHAPE, HIDDEN, STEPS = 2, 8, (24, 28, 24), 16, 16
Stack = tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]
"""Model, loss as a function of its input, and an input `[N, C, D, H, W]`."""


def build_stack(name: str) -> Stack:
    """Build a stack of STACKS."""
    return STACKS[name][1]()


def installed(name: str) -> bool:
    """Whether the library of a stack is installed."""
    return find_spec(STACKS[name][0]) is not None


def _nll(z: Tensor, log_det: Tensor | float) -> Tensor:
    loss = 0.5 * z.square().flatten(1).sum(1) - log_det
    return loss.mean() / z[0].numel()


def _subnet(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(in_channels, HIDDEN, 3, padding=1),
        nn.SiLU(inplace=True),
        nn.Conv3d(HIDDEN, HIDDEN, 1),
        nn.SiLU(inplace=True),
        nn.Conv3d(HIDDEN, out_channels, 3, padding=1),
    )


def _dualflow(memory: Memory) -> Stack:
    spec = FlowSpec(levels=1, steps=(STEPS,), hidden=(HIDDEN,), source="glow", prior="relation", context="none")
    level, maps = Level(spec, 0, 1), no_maps(spec)[0]
    set_memory(level, memory)
    x = torch.randn(BATCH, 1, *(2 * size for size in SHAPE))
    level.initialize(x, maps)
    return level, lambda x: _nll(*level(x, maps)), x


def _freia() -> Stack:
    framework, modules = import_module("FrEIA.framework"), import_module("FrEIA.modules")
    network: Any = framework.SequenceINN(CHANNELS, *SHAPE)
    for _ in range(STEPS):
        network.append(modules.AllInOneBlock, subnet_constructor=_subnet)
    return network, lambda x: _nll(*network(x)), torch.randn(BATCH, CHANNELS, *SHAPE)


def _memcnn() -> Stack:
    memcnn = import_module("memcnn")
    half = CHANNELS // 2
    network = nn.Sequential(
        *(
            memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(_subnet(half, half), _subnet(half, half)))
            for _ in range(STEPS // 2)
        )
    )
    # MemCNN frees the storage of its input, so each pass gets a copy.
    return network, lambda x: _nll(network(x.clone().requires_grad_()), 0.0), torch.randn(BATCH, CHANNELS, *SHAPE)


STACKS: dict[str, tuple[str, Callable[[], Stack]]] = {
    "dualflow, stored": ("torch", lambda: _dualflow("stored")),
    "dualflow, reversible": ("torch", lambda: _dualflow("reversible")),
    "FrEIA AllInOneBlock": ("FrEIA", _freia),
    "MemCNN additive": ("memcnn", _memcnn),
}
"""Name -> the library that a stack needs, and its builder."""
