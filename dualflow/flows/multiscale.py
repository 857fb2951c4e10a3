"""The multi-scale flow: levels joined by splits, which factor out half of the channels as latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import zero_log_det
from dualflow.flows.level import Level, StepMaps
from dualflow.flows.spec import FlowSpec

FlowMaps = Sequence[Sequence[StepMaps]]
"""Context of a whole flow: the maps of each step of each level, finest level first."""


class Encoding(NamedTuple):
    """Latents of a volume, with their log-determinant; lists have one entry per level, finest first.

    Attributes:
        latents: latents of each level, `[N, C_l, d_l, h_l, w_l]`.
        coarser: input of the next coarser level, a bijection of all coarser latents; None at the last level.
        log_det: `log |det dz/dx|`, `[N]`.
        activations: output of every layer of every step, from `trace`; otherwise empty.
    """

    latents: list[Tensor]
    coarser: list[Tensor | None]
    log_det: Tensor
    activations: list[list[StepMaps]]


class MultiScaleFlow(nn.Module):
    """Levels joined by splits: `x -> (z_1, ..., z_L)`, finest first (Dinh et al. 2017, section 3.6).

    After level l the first half of the channels, `h_l`, enters the next level and the second half is the latent `z_l`.
    At the last level all channels are the latent. `h_l` is a bijection of all coarser latents, so the prior of `z_l`
    may depend on it.

    Args:
        spec: the flow's choices.
        in_channels: channels of the volume.
        context_channels: channels of the maps of each level; empty without context.
    """

    def __init__(self, spec: FlowSpec, in_channels: int, context_channels: Sequence[int] = ()) -> None:
        super().__init__()
        map_channels = context_channels or [0] * spec.levels
        self.levels = nn.ModuleList(
            Level(spec, index, in_channels * 4**index, map_channels[index]) for index in range(spec.levels)
        )

    def encode(self, x: Tensor, maps: FlowMaps) -> Encoding:
        """Map data to latents."""
        return self._apply_levels(x, maps, lambda level, h, level_maps: (*level(h, level_maps), []))

    def trace(self, x: Tensor, maps: FlowMaps) -> Encoding:
        """Map data to latents, and return the activations too."""
        return self._apply_levels(x, maps, Level.trace)

    @torch.no_grad()
    def initialize(self, x: Tensor, maps: FlowMaps) -> Encoding:
        """Set every actnorm from the batch, level by level; ignore the returned log-determinant: it is meaningless."""
        return self._apply_levels(
            x, maps, lambda level, h, level_maps: (level.initialize(h, level_maps), zero_log_det(h), [])
        )

    def decode(self, latent_of: Callable[[int, Tensor | None], Tensor], maps: FlowMaps) -> tuple[Tensor, Tensor]:
        """Map latents to `(data, -log_det[N])`, coarsest first.

        Args:
            latent_of: `latent_of(level, h)` returns the latent of a level, given the decoded input h of the next
                coarser level, or None at the coarsest: a fixed latent, or a sample of a prior that depends on h.
            maps: context of the flow.
        """
        h: Tensor | None = None
        total: Tensor | None = None
        for index in reversed(range(len(self.levels))):
            z = latent_of(index, h)
            level = self.levels[index]
            assert isinstance(level, Level)
            h, log_det = level.inverse(z if h is None else torch.cat([h, z], dim=1), maps[index])
            total = log_det if total is None else total + log_det
        assert h is not None
        assert total is not None
        return h, total

    def _apply_levels(
        self,
        x: Tensor,
        maps: FlowMaps,
        apply: Callable[[Level, Tensor, Sequence[StepMaps]], tuple[Tensor, Tensor, list[StepMaps]]],
    ) -> Encoding:
        encoding = Encoding([], [], zero_log_det(x), [])
        for index, level in enumerate(self.levels):
            assert isinstance(level, Level)
            x, term, activations = apply(level, x, maps[index])
            encoding = encoding._replace(log_det=encoding.log_det + term)
            encoding.activations.append(activations)
            if index + 1 < len(self.levels):
                x, z = x.chunk(2, dim=1)
                encoding.latents.append(z)
                encoding.coarser.append(x)
            else:
                encoding.latents.append(x)
                encoding.coarser.append(None)
        return encoding


def level_channels(in_channels: int, levels: int) -> list[int]:
    """Return the channels of each level's latent, finest first: 4, 16, 128 for one channel and three levels."""
    return [in_channels * 4 ** (level + 1) * (2 if level + 1 == levels else 1) for level in range(levels)]


def step_channels(in_channels: int, levels: int) -> list[int]:
    """Return the channels of each level's steps, finest first: 8, 32, 128 for one channel and three levels."""
    return [8 * in_channels * 4**level for level in range(levels)]


def level_shapes(shape: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Return the spatial size of each level's latent, finest first."""
    return [tuple(size // 2 ** (level + 1) for size in shape) for level in range(levels)]


def joined(latents: Sequence[Tensor]) -> Tensor:
    """Return the latents of all levels, given finest first, in one row, coarsest first, `[N, M]`."""
    return torch.cat([latent.flatten(1) for latent in reversed(latents)], dim=1)


def separated(latents: Tensor, in_channels: int, shape: Sequence[int], levels: int) -> list[Tensor]:
    """Return the latents of each level, finest first, from `joined` ones of a volume of this size."""
    sizes = list(zip(level_channels(in_channels, levels), level_shapes(shape, levels), strict=True))
    parts = latents.split_with_sizes([channels * prod(grid) for channels, grid in reversed(sizes)], dim=1)
    return [part.view(-1, channels, *grid) for part, (channels, grid) in zip(reversed(parts), sizes, strict=True)]
