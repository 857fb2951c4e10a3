"""Sources: what turns the conditioning image into maps for every level, and every step, of the target's flow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.base_distributions import StandardNormal
from dualflow.flows.level import StepMaps, no_maps
from dualflow.flows.multiscale import FlowMaps, MultiScaleFlow, level_channels, step_channels
from dualflow.flows.network import Convolution, VolumeNorm
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import Squeeze

# Channels of an encoder's features, from one level to the next coarser one.
GROWTH = 3
PIECES = ("actnorm", "mixing", "injector", "coupling")


class SourceEncoding(NamedTuple):
    """What a source has to say.

    Attributes:
        features: one map per level for the prior, finest first, `[N, F_l, d_l, h_l, w_l]`.
        maps: for each step of each level, one map per piece, `[N, G_l, d_l, h_l, w_l]`; empty if context is none.
        log_prob: log p(source) in nats, `[N]`, from a source that is a density itself; otherwise None.
    """

    features: list[Tensor]
    maps: FlowMaps
    log_prob: Tensor | None


class GlowSource(nn.Module):
    """An unconditional multi-scale Glow of the target flow's depth: its latents are the features (DUAL-GLOW).

        log p(x_s) = sum_l log N(z_s^l; 0, I) + log |det dz_s / dx_s|

    With context `step`, step k of the target sees what the pieces of step k put out here: the activation after actnorm,
    after mixing and after coupling (C-Flow uses the last, Full-Glow all three). Nothing of the target ever comes here,
    and one forward pass of the source serves any number of samples.

    Maps other than the source itself have no place in that density; the side embedding is appended to what is put out.
    """

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        super().__init__()
        plain = spec.replace(
            context="none", actnorm="plain", mixing="lu", injector=False, attention="none", prior="relation",
            prior_mean=True,
        )  # fmt: skip
        self.context, self.none = spec.context, no_maps(spec)
        self.flow = MultiScaleFlow(plain, source_channels)
        self.base = StandardNormal()
        self.channels = [count + side_channels for count in level_channels(source_channels, spec.levels)]
        inside = {"none": [0] * spec.levels, "level": self.channels}
        of_steps = [count + side_channels for count in step_channels(source_channels, spec.levels)]
        self.map_channels = inside.get(spec.context, of_steps)

    def forward(self, source: Tensor, maps: Tensor | None = None, side: Tensor | None = None) -> SourceEncoding:
        """Encode `[N, C, D, H, W]`."""
        # Only steps that are seen keep their activations; the others keep what the training's memory mode says.
        code = (self.flow.trace if self.context == "step" else self.flow.encode)(source, self.none)
        log_prob = code.log_det
        for z in code.latents:
            log_prob = log_prob + self.base.log_prob(z.flatten(1))
        features = [_append(z, side) for z in code.latents]
        if self.context == "step":
            return SourceEncoding(
                features, [[_of_step(seen, side) for seen in level] for level in code.activations], log_prob
            )
        return SourceEncoding(features, _repeated(features, self.none, self.context), log_prob)

    def initialize(self, source: Tensor) -> None:
        """Set the actnorms from a batch of sources."""
        self.flow.initialize(source, self.none)


class EncoderSource(nn.Module):
    """A feature pyramid that starts at half resolution, where the flow's finest level lives.

    Down: a convolution per level, to `GROWTH` times the channels, for a coarse voxel has more to tell. Up: each level
    adds the upsampled coarser one, so that every feature knows its surroundings. Each output is normalised over the
    whole volume, so that heads that read it cannot starve; not voxel by voxel, for the length of a voxel's feature
    vector is the intensity it has to tell. With context `step` a further convolution per step makes one map for each
    step out of the one before it (PU-Flow).
    """

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        super().__init__()
        widths = [spec.context_channels * GROWTH**level for level in range(spec.levels)]
        pairs = list(pairwise(widths))
        self.context, self.none = spec.context, no_maps(spec)
        self.channels = widths
        self.map_channels = [width * (spec.context != "none") for width in widths]
        self.squeeze = Squeeze()
        self.stem = Convolution(8 * (source_channels + map_channels), widths[0], 3)
        self.side = nn.Linear(side_channels, widths[0]) if side_channels else None
        self.start = nn.Sequential(VolumeNorm(widths[0]), nn.SiLU())
        self.down = nn.ModuleList(_block(fine, coarse, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(Convolution(coarse, fine, 1) for fine, coarse in pairs)
        self.refine = nn.ModuleList(_block(width, width) for width in widths)
        self.norms = nn.ModuleList(VolumeNorm(width) for width in widths)
        self.blocks = nn.ModuleList(
            nn.ModuleList(_block(width, width) for _ in range(count))
            for width, count in (zip(widths, spec.steps, strict=True) if spec.context == "step" else ())
        )

    def forward(self, source: Tensor, maps: Tensor | None = None, side: Tensor | None = None) -> SourceEncoding:
        """Encode `[N, C, D, H, W]`, other maps on the same grid, and a side embedding `[N, E]`."""
        x, _ = self.squeeze(source if maps is None else torch.cat([source, maps], dim=1))
        x = self.stem(x)
        if self.side is not None:
            x = x + self.side(side)[:, :, None, None, None]
        path = [self.start(x)]
        for block in self.down:
            path.append(block(path[-1]))
        features: list[Tensor] = []
        for index in reversed(range(len(path))):
            x = path[index]
            if features:
                x = x + F.interpolate(self.up[index](features[0]), scale_factor=2, mode="nearest")
            features.insert(0, self.norms[index](x + self.refine[index](x)))
        if self.context != "step":
            return SourceEncoding(features, _repeated(features, self.none, self.context), None)
        chains: list[list[StepMaps]] = []
        for x, blocks in zip(features, self.blocks, strict=True):
            chains.append([])
            for block in blocks:  # type: ignore[attr-defined]
                x = x + block(x)
                chains[-1].append(dict.fromkeys(PIECES, x))
        return SourceEncoding(features, chains, None)

    def initialize(self, source: Tensor) -> None:
        """Nothing depends on data."""


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    # No bias, and normalised before the nonlinearity: a constant offset would soon drown what varies over the volume.
    conv = Convolution(in_channels, out_channels, 3, stride=stride, bias=False)
    return nn.Sequential(conv, VolumeNorm(out_channels), nn.SiLU())


def _repeated(features: Sequence[Tensor], none: FlowMaps, context: str) -> FlowMaps:
    """The level's features for every piece of every step, or nothing."""
    if context == "none":
        return none
    return [[dict.fromkeys(PIECES, feature)] * len(level) for feature, level in zip(features, none, strict=True)]


def _of_step(activations: StepMaps, side: Tensor | None) -> StepMaps:
    """One source step's activations as maps of one target step; an injector sees what the coupling sees."""
    maps = {name: _append(activation, side) for name, activation in activations.items()}
    return {**maps, "injector": maps["coupling"]}


def _append(z: Tensor, side: Tensor | None) -> Tensor:
    if side is None:
        return z
    constant = side.to(z.dtype)[:, :, None, None, None].expand(-1, -1, *z.shape[2:])
    return torch.cat([z, constant], dim=1)


SOURCES: dict[str, type[GlowSource] | type[EncoderSource]] = {"glow": GlowSource, "encoder": EncoderSource}
