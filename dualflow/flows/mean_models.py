"""MEANS: conditional means mu(source, side) that a flow subtracts; x - mu is a bijection with log-determinant 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.errors import ShapeError
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.network import Convolution, VolumeNorm, ZeroConv
from dualflow.flows.squeeze import HaarSqueeze
from dualflow.flows.stacked_mean import StackedMean
from dualflow.flows.voxel_features import foreground

GROUP = 4


class NoMean(nn.Module):
    """A mean of zero: the flow models the whole target.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1) -> None:
        super().__init__()

    def forward(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return zeros like a channel of the source."""
        return torch.zeros_like(source[:, :1])


def known_side(side: Tensor | None, like: Tensor, count: int) -> Tensor:
    """Return side values with a flag each, `[N, 2S]`: unknown (NaN) is value 0 and flag 0.

    Raises:
        ShapeError: side is not `[N, count]`.
    """
    if side is None:
        return like.new_zeros(like.shape[0], 2 * count)
    if side.shape != (like.shape[0], count):
        raise ShapeError(f"side is {tuple(side.shape)}; expected [{like.shape[0]}, {count}], NaN where unknown")
    return torch.cat([torch.nan_to_num(side, nan=0.0), (~side.isnan()).to(side.dtype)], dim=1)


def coordinates(shape: tuple[int, int, int]) -> Tensor:
    """Return the position of each voxel in -1..1 along the three axes, `[1, 3, D, H, W]`."""
    axes = [torch.linspace(-1, 1, size) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


class _Block(nn.Module):
    """Two 3^3 convolutions with GroupNorm; side information scales and shifts in between (FiLM, Perez et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, side_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = Convolution(in_channels, out_channels, 3, stride=stride)
        self.first_norm = VolumeNorm(out_channels, out_channels // GROUP)
        self.film = nn.Linear(side_channels, 2 * out_channels)
        self.second = Convolution(out_channels, out_channels, 3)
        self.second_norm = VolumeNorm(out_channels, out_channels // GROUP)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        scale, shift = self.film(side)[:, :, None, None, None].chunk(2, dim=1)
        hidden = F.silu(self.first_norm(self.first(x)) * (1 + scale) + shift)
        return hidden + F.silu(self.second_norm(self.second(hidden)))


class NetworkMean(nn.Module):
    """A half-resolution encoder-decoder whose output is added to a template image.

    Its inputs are the Haar bands of source and template, and the position of each voxel, so its output can depend on
    location. Half the resolution costs an eighth of the full grid.

    Args:
        shape: the grid, D, H, W: even sizes.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, a multiple of 4; doubled at each of two coarser scales.
    """

    template: Tensor
    position: Tensor

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 16
    ) -> None:
        super().__init__()
        if any(size % 2 for size in shape):
            raise ShapeError(f"grid {tuple(shape)} cannot be halved; choose even sizes")
        self.side_features = side_features
        self.haar = HaarSqueeze()
        half = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
        self.register_buffer("template", torch.zeros(1, 1, *shape))
        self.register_buffer("position", coordinates(half), persistent=False)
        # A constant input keeps the linear layer of FiLM non-empty without side columns.
        side_channels = 2 * side_features + 1
        self.stem = _Block(8 * (source_channels + 1) + 3, width, side_channels)
        self.down = _Block(width, 2 * width, side_channels, stride=2)
        self.bottom = _Block(2 * width, 4 * width, side_channels, stride=2)
        self.up = _Block(6 * width, 2 * width, side_channels)
        self.top = _Block(3 * width, width, side_channels)
        self.head = ZeroConv(width, 8, 3)

    def set_template(self, image: Tensor) -> None:
        """Set the template `[D, H, W]`, `[1, D, H, W]` or `[1, 1, D, H, W]`: mean of the training targets."""
        self.template.copy_(image.reshape(self.template.shape))

    def forward(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the conditional mean `[N, 1, D, H, W]`, in the target's unit."""
        template = self.template.expand(len(source), -1, -1, -1, -1)
        side_inputs = F.pad(known_side(side, source, self.side_features), (0, 1), value=1.0)
        position = self.position.expand(source.shape[0], -1, -1, -1, -1)
        bands = [self.haar(image)[0] for image in (source, template)]
        fine = self.stem(torch.cat([*bands, position.to(source.dtype)], dim=1), side_inputs)
        middle = self.down(fine, side_inputs)
        coarse = self.bottom(middle, side_inputs)
        middle = self.up(torch.cat([_resized(coarse, middle), middle], dim=1), side_inputs)
        fine = self.top(torch.cat([_resized(middle, fine), fine], dim=1), side_inputs)
        correction: Tensor = self.haar.inverse(self.head(fine))[0]
        # The source is 0 outside the brain mask, where the loss does not train the network.
        return (template + correction.to(template.dtype)) * foreground(source)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


MEANS: dict[str, type[NoMean] | type[NetworkMean] | type[LocalLinear] | type[StackedMean]] = {
    "none": NoMean,
    "network": NetworkMean,
    "local_linear": LocalLinear,
    "stacked": StackedMean,
}
