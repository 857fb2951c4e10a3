"""Layers and networks inside the flow's layers: ordinary convolutions without any invertibility constraint."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def channels_last(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a volume in a type, by default its own, and in channels-last memory format on a CPU.

    oneDNN's 3D convolutions take 50 to 90 % of the time of the contiguous format.
    """
    memory = torch.channels_last_3d if x.device.type == "cpu" else torch.preserve_format
    return x.to(dtype or x.dtype, memory_format=memory)


def to_data_format(out: Tensor, data: Tensor) -> Tensor:
    """Return a network's output in the type of the flow's data and in contiguous memory format."""
    return out.to(data.dtype, memory_format=torch.contiguous_format)


class Convolution(nn.Conv3d):
    """A 3D convolution with "same" padding, in float32 if the volume is smaller than the kernel.

    For such volumes oneDNN's bfloat16 weight gradients are wrong, often infinite (torch 2.13, a CPU with AVX-512).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.pointwise = kernel == stride == 1

    def forward(self, x: Tensor, gain: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Convolve `[N, C, D, H, W]` with zero padding; the result is channels-last on a CPU.

        Args:
            x: the volume.
            gain: factor of each input channel, `[C, 1, 1, 1]`; applied to the weights, without a pass over the volume.
            scale: factor of the output, applied to weights and bias.
        """
        weight, bias = self.weight, self.bias
        if gain is not None or scale != 1.0:
            weight = weight * (scale if gain is None else gain * scale)
            bias = None if bias is None else bias * scale
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        if autocast and not self.pointwise and min(x.shape[2:]) < self.kernel_size[0]:
            with torch.autocast(device, enabled=False):
                return self._convolve(channels_last(x, weight.dtype), weight, bias)
        # One copy for type and format; autocast would copy once more. It leaves float64 alone.
        rounded = autocast and x.dtype != torch.float64
        x = channels_last(x, torch.get_autocast_dtype(device) if rounded else x.dtype)
        if self.pointwise:
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        return self._convolve(x, weight, bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) > 1 or x.device.type != "cpu" or x.shape[2] % 2 or self.stride != (1, 1, 1):
            return F.conv3d(x, weight, bias, self.stride, self.padding)
        # Torch's fast path on a CPU needs two volumes or more, so a single volume is split in overlapping halves.
        edge, half = self.kernel_size[0] // 2, x.shape[2] // 2
        x = F.pad(x, (0, 0, 0, 0, edge, edge))
        halves = torch.cat([x[:, :, : half + 2 * edge], x[:, :, half:]])
        return torch.cat(F.conv3d(channels_last(halves), weight, bias, 1, (0, edge, edge)).chunk(2), dim=2)


class UnitRMS(torch.autograd.Function):
    """Divide each voxel's channel vector by its root mean square, `[N, C, D, H, W]`.

        y = x r,    r = (mean_c x^2 + eps)^(-1/2),    dx = r (dy - y mean_c(y dy))

    Autograd's own backward pass takes ten times as long on a CPU.
    """

    EPSILON = 1e-6

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Normalise."""
        scale = _dense(torch.rsqrt(_channel_mean(x * x) + UnitRMS.EPSILON), x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the input."""
        (y, scale), (gradient,) = ctx.saved_tensors, gradients
        projection = _dense(_channel_mean(y * gradient), y)
        return torch.addcmul(gradient, y, projection, value=-1).mul_(scale)


def _channel_mean(x: Tensor) -> Tensor:
    """Return the mean over the channels `[N, 1, D, H, W]`, as a matrix product: the fastest way in channels-last."""
    with torch.autocast(x.device.type, enabled=False):
        share = x.new_full((x.shape[1], 1), 1 / x.shape[1])
        return (x.movedim(1, -1) @ share).movedim(-1, 1)


def _dense(per_voxel: Tensor, x: Tensor) -> Tensor:
    """Expand one number per voxel to the size of x in bfloat16, because torch broadcasts bfloat16 slowly."""
    return channels_last(per_voxel.expand_as(x)) if x.dtype == torch.bfloat16 else per_voxel


class RMSNorm(nn.Module):
    """Divide each voxel's channel vector by its root mean square, then apply a learnt gain per channel.

    It has no batch statistics, so training and inference agree. Before an output layer it keeps the gradients from
    vanishing and bounds the layer's output (Zhang & Sennrich 2019).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[N, C, D, H, W]` over C."""
        return self.without_gain(x) * self.gain.to(x.dtype)

    def without_gain(self, x: Tensor) -> Tensor:
        """Normalise without the gain, which the next layer applies."""
        normalised: Tensor = UnitRMS.apply(x)  # type: ignore[no-untyped-call]
        return normalised


class VolumeNorm(nn.GroupNorm):
    """Group normalisation over the volume; by default all channels are one group."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[N, C, D, H, W]` in contiguous format, because channels-last takes torch ten times as long."""
        return super().forward(x.contiguous())


class ZeroConv(nn.Module):
    """A convolution that starts at zero, so that the transform it parametrises starts as the identity.

    One step of an adaptive optimiser moves every weight by about the learning rate, and the output of F inputs by F
    times as much. A gain of `sqrt(WIDE / F)` keeps wide layers (5^3 x 128 inputs) from diverging in the first steps.
    """

    WIDE = 256

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, kernel)
        self.gain = min(1.0, sqrt(self.WIDE / (in_channels * kernel**3)))
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Convolve `[N, C, D, H, W]` with zero padding, after multiplying the channels by `gain`."""
        out: Tensor = self.conv(x, gain, self.gain)
        return out


class Conditioner(nn.Module):
    """Glow's coupling network (conv 3^3, conv 1^3, zero conv 3^3) with the context added, not concatenated.

    The sum `conv(x_a) + context` equals a convolution of the concatenation, without the copy. The context
    `[N, hidden, D, H, W]` is already projected to the hidden width.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.first = Convolution(in_channels, hidden_channels, 3)
        self.middle = Convolution(hidden_channels, hidden_channels, 1)
        self.norm = RMSNorm(hidden_channels)
        self.last = ZeroConv(hidden_channels, out_channels, 3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `[N, in, D, H, W]` to `[N, out, D, H, W]`."""
        hidden = self.first(x)
        if context is not None:
            hidden = hidden + context
        hidden = self.middle(F.silu(hidden))
        out: Tensor = self.last(self.norm.without_gain(F.silu(hidden)), self.norm.gain)
        return out


class PooledHead(nn.Module):
    """A vector from a feature map: conv 3^3, average over a coarse grid, two linear layers, the last one zero.

    The vector's size does not depend on the volume's. Only the last layer starts at zero: stacked zero layers with ReLU
    pass no gradient and never learn, as in the published c-Glow code. The normalisation before the last layer keeps its
    gradient from vanishing.
    """

    GRID = 2
    HIDDEN = 32

    def __init__(self, in_channels: int, out_features: int) -> None:
        super().__init__()
        hidden = self.HIDDEN
        self.conv = Convolution(in_channels, hidden, 3)
        self.middle = nn.Linear(hidden * self.GRID**3, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, out_features)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, D, H, W]` to `[N, out]`."""
        pooled = F.adaptive_avg_pool3d(F.silu(self.conv(x)), self.GRID).flatten(1)
        out: Tensor = self.last(self.norm(F.silu(self.middle(pooled))))
        return out
