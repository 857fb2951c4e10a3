"""Sources: what turns the conditioning image into one feature map per level of the target flow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.base import StandardNormal
from dualflow.flows.multiscale import MultiScaleFlow, level_channels
from dualflow.flows.network import RMSNorm
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import Squeeze


class SourceCode(NamedTuple):
    """What a source has to say.

    Attributes:
        features: one map per level, finest first, `[N, F_l, d_l, h_l, w_l]`.
        log_prob: log p(source) in nats, `[N]`, from a source that is a density itself; otherwise None.
    """

    features: list[Tensor]
    log_prob: Tensor | None


class GlowSource(nn.Module):
    """An unconditional multi-scale Glow: its latents are the features, and log p(source) comes with them.

        log p(x_s) = sum_l log N(z_s^l; 0, I) + log |det dz_s / dx_s|

    Maps other than the source itself have no place in that density; the side embedding is appended to the latents.
    """

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        super().__init__()
        self.flow = MultiScaleFlow(spec.replace(coupling_context="none"), source_channels)
        self.base = StandardNormal()
        self.channels = [count + side_channels for count in level_channels(source_channels, spec.levels)]

    def forward(self, source: Tensor, maps: Tensor | None = None, side: Tensor | None = None) -> SourceCode:
        """Encode `[N, C, D, H, W]`."""
        latents, _, log_det = self.flow.encode(source, [None] * len(self.channels))
        log_prob = log_det
        for z in latents:
            log_prob = log_prob + self.base.log_prob(z.flatten(1))
        return SourceCode([_append(z, side) for z in latents], log_prob)

    def initialize(self, source: Tensor) -> None:
        """Set the actnorms from a batch of sources."""
        self.flow.initialize(source, [None] * len(self.channels))


class EncoderSource(nn.Module):
    """A feature pyramid that starts at half resolution, where the flow's finest level lives.

    Down: a convolution per level. Up: each level adds the upsampled coarser one, so that every feature knows its
    surroundings. Each output is RMS-normalised: heads that read it cannot starve.
    """

    def __init__(self, spec: FlowSpec, source_channels: int, map_channels: int, side_channels: int) -> None:
        super().__init__()
        width, levels = spec.context_channels, spec.levels
        self.channels = [width] * levels
        self.squeeze = Squeeze()
        self.stem = nn.Conv3d(8 * (source_channels + map_channels), width, 3, padding=1)
        self.side = nn.Linear(side_channels, width) if side_channels else None
        self.down = nn.ModuleList(nn.Conv3d(width, width, 3, stride=2, padding=1) for _ in range(levels - 1))
        self.refine = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(levels))
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(levels))

    def forward(self, source: Tensor, maps: Tensor | None = None, side: Tensor | None = None) -> SourceCode:
        """Encode `[N, C, D, H, W]`, other maps on the same grid, and a side embedding `[N, E]`."""
        x, _ = self.squeeze(source if maps is None else torch.cat([source, maps], dim=1))
        x = self.stem(x)
        if self.side is not None:
            x = x + self.side(side)[:, :, None, None, None]
        path = [F.silu(x)]
        for conv in self.down:
            path.append(F.silu(conv(path[-1])))
        features: list[Tensor] = []
        for index in reversed(range(len(path))):
            x = path[index]
            if features:
                x = x + F.interpolate(features[0], scale_factor=2, mode="nearest")
            features.insert(0, self.norms[index](x + F.silu(self.refine[index](x))))
        return SourceCode(features, None)

    def initialize(self, source: Tensor) -> None:
        """Nothing depends on data."""


def _append(z: Tensor, side: Tensor | None) -> Tensor:
    if side is None:
        return z
    constant = side.to(z.dtype)[:, :, None, None, None].expand(-1, -1, *z.shape[2:])
    return torch.cat([z, constant], dim=1)


SOURCES: dict[str, type[GlowSource] | type[EncoderSource]] = {"glow": GlowSource, "encoder": EncoderSource}
