"""The multi-scale flow: levels joined by splits; half of the channels leaves at every level but the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import zero_log_det
from dualflow.flows.level import Level, StepMaps
from dualflow.flows.spec import FlowSpec

FlowMaps = Sequence[Sequence[StepMaps]]
"""The context of a whole flow: for each level, finest first, the maps of each step."""


class Encoding(NamedTuple):
    """What a multi-scale flow makes of a volume; lists have one entry per level, finest first.

    Attributes:
        latents: `[N, C_l, d_l, h_l, w_l]`.
        coarser: what went on below each level, a bijection of all coarser latents; None at the last level.
        log_det: `log |det dz/dx|`, `[N]`.
        activations: what every piece of every step put out, from `trace`; otherwise empty.
    """

    latents: list[Tensor]
    coarser: list[Tensor | None]
    log_det: Tensor
    activations: list[list[StepMaps]]


class MultiScaleFlow(nn.Module):
    """Levels joined by splits: `x -> (z_1, ..., z_L)`, finest first (Dinh et al. 2017, section 3.6).

    After level l the first half of the channels, `h_l`, goes on and the second half leaves as the latent `z_l`; at the
    last level everything leaves. `h_l` is thus a bijection of all coarser latents, and may condition the prior of z_l.
    """

    def __init__(self, spec: FlowSpec, in_channels: int, context_channels: Sequence[int] = ()) -> None:
        super().__init__()
        contexts = context_channels or [0] * spec.levels
        self.levels = nn.ModuleList(
            Level(spec, index, in_channels * 4**index, contexts[index]) for index in range(spec.levels)
        )

    def encode(self, x: Tensor, maps: FlowMaps) -> Encoding:
        """Map data to latents."""
        return self._descend(x, maps, lambda level, h, seen: (*level(h, seen), []))

    def trace(self, x: Tensor, maps: FlowMaps) -> Encoding:
        """Map data to latents, and keep the activations."""
        return self._descend(x, maps, Level.trace)

    @torch.no_grad()
    def initialize(self, x: Tensor, maps: FlowMaps) -> Encoding:
        """Set every actnorm from the batch, level by level; the log-determinant returned is not meant."""
        return self._descend(x, maps, lambda level, h, seen: (level.initialize(h, seen), zero_log_det(h), []))

    def decode(self, choose: Callable[[int, Tensor | None], Tensor], maps: FlowMaps) -> tuple[Tensor, Tensor]:
        """Map latents to `(data, -log_det[N])`, coarsest first.

        `choose(level, h)` gives the latent of a level once the part h that went on below it is known: a given latent,
        or a draw from a prior that sees the coarser latents.
        """
        h: Tensor | None = None
        total: Tensor | None = None
        for index in reversed(range(len(self.levels))):
            z = choose(index, h)
            level = self.levels[index]
            assert isinstance(level, Level)
            h, log_det = level.inverse(z if h is None else torch.cat([h, z], dim=1), maps[index])
            total = log_det if total is None else total + log_det
        assert h is not None
        assert total is not None
        return h, total

    def _descend(
        self,
        x: Tensor,
        maps: FlowMaps,
        apply: Callable[[Level, Tensor, Sequence[StepMaps]], tuple[Tensor, Tensor, list[StepMaps]]],
    ) -> Encoding:
        code = Encoding([], [], zero_log_det(x), [])
        for index, level in enumerate(self.levels):
            assert isinstance(level, Level)
            x, term, activations = apply(level, x, maps[index])
            code = code._replace(log_det=code.log_det + term)
            code.activations.append(activations)
            if index + 1 < len(self.levels):
                x, z = x.chunk(2, dim=1)
                code.latents.append(z)
                code.coarser.append(x)
            else:
                code.latents.append(x)
                code.coarser.append(None)
        return code


def level_channels(in_channels: int, levels: int) -> list[int]:
    """Channels of the latent of each level, finest first: 4, 16, 128 for one channel and three levels."""
    return [in_channels * 4 ** (level + 1) * (2 if level + 1 == levels else 1) for level in range(levels)]


def step_channels(in_channels: int, levels: int) -> list[int]:
    """Channels that the steps of each level work on, finest first: 8, 32, 128 for one channel."""
    return [8 * in_channels * 4**level for level in range(levels)]


def level_shapes(shape: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Spatial size of the latent of each level, finest first."""
    return [tuple(size // 2 ** (level + 1) for size in shape) for level in range(levels)]
