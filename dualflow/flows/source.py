"""Sources: networks that turn the source image into feature maps for every level and step of the target's flow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.base_distributions import white_log_prob
from dualflow.flows.level import StepMaps, no_maps
from dualflow.flows.multiscale import FlowMaps, MultiScaleFlow, level_channels, step_channels
from dualflow.flows.network import Convolution, VolumeNorm
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import Squeeze

CHANNEL_GROWTH = 3
"""Factor between the encoder's channels of one level and of the next coarser level."""
PIECES = ("actnorm", "mixing", "injector", "coupling")
"""Names of the layers of a step that may have a map."""


class SourceEncoding(NamedTuple):
    """Output of a source.

    Attributes:
        features: feature map of each level for its prior, finest first, `[N, F_l, d_l, h_l, w_l]`.
        maps: maps of each layer of each step of each level, `[N, G_l, d_l, h_l, w_l]`; empty if context is none.
        log_prob: log p(source) in nats, `[N]`, from a source with a density; otherwise None.
    """

    features: list[Tensor]
    maps: FlowMaps
    log_prob: Tensor | None


class GlowSource(nn.Module):
    """An unconditional multi-scale Glow of the source; its latents are the features (DUAL-GLOW).

        log p(x_s) = sum_l log N(z_s^l; 0, I) + log |det dz_s / dx_s|

    It has as many levels and steps as the target's flow. With context `step`, step k of the target sees the outputs of
    the layers of step k here: after actnorm, mixing and coupling (C-Flow uses the last, Full-Glow all three). The
    source does not depend on the target, so one forward pass serves any number of samples.

    The density covers the source alone: extra input maps are ignored, and the side embedding is appended to the
    outputs.

    Args:
        spec: the flow's choices.
        source_channels: channels of the source.
        map_channels: channels of the extra input maps, which are ignored.
        side_channels: size of the side embedding, 0 without one.
    """

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        super().__init__()
        self.context, self.no_maps = spec.context, no_maps(spec)
        self.flow = MultiScaleFlow(_unconditional(spec), source_channels)
        self.channels = [count + side_channels for count in level_channels(source_channels, spec.levels)]
        self.map_channels = {
            "none": [0] * spec.levels,
            "level": self.channels,
            "step": [count + side_channels for count in step_channels(source_channels, spec.levels)],
        }[spec.context]

    def forward(self, source: Tensor, maps: Tensor | None = None, side: Tensor | None = None) -> SourceEncoding:
        """Encode `[N, C, D, H, W]`."""
        # Only context `step` needs the activations; otherwise the training's memory mode decides what is stored.
        encoding = (self.flow.trace if self.context == "step" else self.flow.encode)(source, self.no_maps)
        log_prob = encoding.log_det
        for z in encoding.latents:
            log_prob = log_prob + white_log_prob(z)
        features = [_append(z, side) for z in encoding.latents]
        if self.context == "step":
            maps_by_level: FlowMaps = [[_step_maps(step, side) for step in level] for level in encoding.activations]
            return SourceEncoding(features, maps_by_level, log_prob)
        maps_by_level = _level_maps(features, self.no_maps, self.context)
        return SourceEncoding(features, maps_by_level, log_prob)

    @property
    def glow(self) -> Self:
        """The flow of the source, as of every source."""
        return self

    def log_prob(self, source: Tensor) -> Tensor:
        """Return `log p(source)` in nats, `[N]`."""
        log_prob = self(source).log_prob
        assert isinstance(log_prob, Tensor)
        return log_prob

    def initialize(self, source: Tensor) -> None:
        """Set the actnorms from a batch of sources."""
        self.flow.initialize(source, self.no_maps)


class EncoderSource(nn.Module):
    """A feature pyramid network that starts at half resolution, the grid of the flow's finest level.

    Down: a convolution per level, with `CHANNEL_GROWTH` times the channels of the finer level. Up: each level adds the
    upsampled coarser features, so every feature has a wide receptive field. Each output is normalised over the whole
    volume, so the heads that read it keep their gradients. Voxelwise normalisation would remove the intensity, which is
    the length of a voxel's feature vector. With context `step` a residual convolution per step maps the previous step's
    features to the next step's (PU-Flow).

    Args:
        spec: the flow's choices.
        source_channels: channels of the source.
        map_channels: channels of the extra input maps, such as a mean image.
        side_channels: size of the side embedding, 0 without one.
    """

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        super().__init__()
        self.glow: GlowSource | None = None
        widths = [spec.context_channels * CHANNEL_GROWTH**level for level in range(spec.levels)]
        pairs = list(pairwise(widths))
        self.context, self.no_maps = spec.context, no_maps(spec)
        self.channels = widths
        self.map_channels = [width * (spec.context != "none") for width in widths]
        self.squeeze = Squeeze()
        self.stem = self._stem(source_channels, map_channels, widths[0])
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
        """Encode `[N, C, D, H, W]`, extra maps on the same grid, and a side embedding `[N, E]`."""
        x, _ = self.squeeze(source if maps is None else torch.cat([source, maps], dim=1))
        features, level_maps = self._pyramid(self.stem(x), side, [])
        return SourceEncoding(features, level_maps, None)

    def _stem(self, source_channels: int, map_channels: int, width: int) -> Convolution:
        return Convolution(8 * (source_channels + map_channels), width, 3)

    def _pyramid(self, x: Tensor, side: Tensor | None, links: Sequence[Tensor]) -> tuple[list[Tensor], FlowMaps]:
        """Return features and maps from the stem's output; `links` are added on the way down, one per coarser level."""
        if self.side is not None:
            x = x + self.side(side)[:, :, None, None, None]
        pyramid = [self.start(x)]
        for level, block in enumerate(self.down):
            x = block(pyramid[-1])
            pyramid.append(x + links[level] if links else x)
        features: list[Tensor] = []
        for index in reversed(range(len(pyramid))):
            x = pyramid[index]
            if features:
                x = x + F.interpolate(self.up[index](features[0]), scale_factor=2, mode="nearest")
            features.insert(0, self.norms[index](x + self.refine[index](x)))
        if self.context != "step":
            return features, _level_maps(features, self.no_maps, self.context)
        maps_by_level: list[list[StepMaps]] = []
        for x, blocks in zip(features, self.blocks, strict=True):
            maps_by_level.append([])
            for block in blocks:  # type: ignore[attr-defined]
                x = x + block(x)
                maps_by_level[-1].append(dict.fromkeys(PIECES, x))
        return features, maps_by_level

    def initialize(self, source: Tensor) -> None:
        """Do nothing, because no parameter depends on data."""


class GlowPyramidSource(EncoderSource):
    """A Glow of the source, with its own likelihood, whose latents feed the encoder's feature pyramid.

    With the target's flow this is a pair of flows that are linked level by level: the pyramid's level l sees the
    source's latents of the levels up to l on its way down, and the coarser ones on its way up. It has as many levels
    and steps as the target's flow. Raw latents would be hundreds of inputs of a prior's convolution, which few people
    do not determine.

    Args:
        spec: the flow's choices.
        source_channels: channels of the source.
        map_channels: channels of the extra input maps, such as a mean image, which the flow does not see.
        side_channels: size of the side embedding, 0 without one.
    """

    glow: GlowSource

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        latents = level_channels(source_channels, spec.levels)
        self.finest = latents[0]
        super().__init__(spec, source_channels, map_channels, side_channels)
        self.glow = GlowSource(_unconditional(spec), source_channels, 0, 0)
        self.links = nn.ModuleList(
            nn.Sequential(VolumeNorm(latent), Convolution(latent, width, 1, bias=False))
            for latent, width in list(zip(latents, self.channels, strict=True))[1:]
        )

    def forward(self, source: Tensor, maps: Tensor | None = None, side: Tensor | None = None) -> SourceEncoding:
        """Encode `[N, C, D, H, W]`, extra maps on the same grid, and a side embedding `[N, E]`."""
        code = self.glow(source)
        inputs = [code.features[0]] if maps is None else [code.features[0], self.squeeze(maps)[0]]
        links = [link(z) for link, z in zip(self.links, code.features[1:], strict=True)]
        features, level_maps = self._pyramid(self.stem(torch.cat(inputs, dim=1)), side, links)
        return SourceEncoding(features, level_maps, code.log_prob)

    def initialize(self, source: Tensor) -> None:
        """Set the flow's actnorms from a batch of sources."""
        self.glow.initialize(source)

    def _stem(self, source_channels: int, map_channels: int, width: int) -> Convolution:
        return Convolution(self.finest + 8 * map_channels, width, 3)


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    # Without a bias and with normalisation before the nonlinearity, a constant offset cannot dominate the variation.
    conv = Convolution(in_channels, out_channels, 3, stride=stride, bias=False)
    return nn.Sequential(conv, VolumeNorm(out_channels), nn.SiLU())


def _unconditional(spec: FlowSpec) -> FlowSpec:
    """Return the spec of a flow of the source, with the target flow's levels and steps."""
    return spec.replace(
        context="none", actnorm="plain", mixing="lu", injector=False, attention="none", prior="relation",
        prior_mean=True,
    )  # fmt: skip


def _level_maps(features: Sequence[Tensor], no_maps: FlowMaps, context: str) -> FlowMaps:
    """Return the level's features for every layer of every step; no maps with context `none`."""
    if context == "none":
        return no_maps
    return [[dict.fromkeys(PIECES, feature)] * len(level) for feature, level in zip(features, no_maps, strict=True)]


def _step_maps(activations: StepMaps, side: Tensor | None) -> StepMaps:
    """Return the activations of a source step as maps of a target step; an injector sees the coupling's map."""
    maps = {name: _append(activation, side) for name, activation in activations.items()}
    return {**maps, "injector": maps["coupling"]}


def _append(z: Tensor, side: Tensor | None) -> Tensor:
    """Append the side embedding to the channels, constant over the volume."""
    if side is None:
        return z
    constant = side.to(z.dtype)[:, :, None, None, None].expand(-1, -1, *z.shape[2:])
    return torch.cat([z, constant], dim=1)


SOURCES: dict[str, type[GlowSource] | type[EncoderSource]] = {
    "glow": GlowSource,
    "glow_pyramid": GlowPyramidSource,
    "encoder": EncoderSource,
}
