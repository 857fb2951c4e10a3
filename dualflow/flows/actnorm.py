"""Activation normalisation: a scale and shift per channel, set from data or predicted from the source."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import Bijection, soft_bound, soft_bound_inverse, upcast
from dualflow.flows.network import PooledHead

LOG_SCALE_BOUND = 6.0
CONSTANT_CHANNEL = 1e-4


class ActNorm(Bijection):
    """Affine map per channel (Kingma & Dhariwal 2018, section 3.1), with a bounded scale.

        z_c = s_c (x_c + b_c),    log|det| = V sum_c log s_c,    V = D H W voxels

    `initialize` gives every channel of a batch zero mean and unit variance, once. The flag is a buffer, so a restored
    model is never re-initialised. A constant channel keeps scale 1, because its reciprocal deviation is meaningless.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1, 1))
        self.raw_log_scale = nn.Parameter(torch.zeros(channels, 1, 1, 1))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        shift, log_scale = self.shift_and_log_scale(context)
        return (x + shift) * log_scale.exp(), self._log_det(x, log_scale)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Divide, then shift back."""
        shift, log_scale = self.shift_and_log_scale(context)
        return z * (-log_scale).exp() - shift, -self._log_det(z, log_scale)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set scale and shift from the batch `[N, C, D, H, W]`; later calls change nothing."""
        if not self.initialized:
            channels = upcast(x).transpose(0, 1).flatten(1)
            deviation = channels.std(1)
            log_scale = torch.where(deviation > CONSTANT_CHANNEL, -deviation.log(), torch.zeros_like(deviation))
            self.shift.copy_(-channels.mean(1).view_as(self.shift))
            self.raw_log_scale.copy_(soft_bound_inverse(log_scale, LOG_SCALE_BOUND).view_as(self.shift))
            self.initialized.fill_(True)
        return super().initialize(x, context)

    def shift_and_log_scale(self, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return shift and log-scale, `[C, 1, 1, 1]` or `[N, C, 1, 1, 1]`."""
        return self.shift, soft_bound(self.raw_log_scale, LOG_SCALE_BOUND)

    @staticmethod
    def _log_det(x: Tensor, log_scale: Tensor) -> Tensor:
        per_voxel = upcast(log_scale).flatten(-4).sum(-1)
        return (x[0, 0].numel() * per_voxel).expand(x.shape[0])


class ConditionalActNorm(ActNorm):
    """Actnorm with source-dependent scale and shift (Lu & Huang 2020, section 4.1; Sorkhei et al. 2021).

        (b(u), log s(u)) = (b, log s) + CN(pooled u),    z_c = s_c(u) (x_c + b_c(u)),    log|det| = V sum_c log s_c(u)

    The network's last layer starts at zero, so the layer starts as a data-initialised actnorm. Pooling removes
    positions: the layer carries the contrast of the whole image, not its detail.
    """

    def __init__(self, channels: int, context_channels: int) -> None:
        super().__init__(channels)
        self.head = PooledHead(context_channels, 2 * channels)

    def shift_and_log_scale(self, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return shift and log-scale of each sample, `[N, C, 1, 1, 1]`."""
        assert context is not None
        shift, raw = self.head(context)[:, :, None, None, None].to(self.shift.dtype).chunk(2, dim=1)
        return self.shift + shift, soft_bound(self.raw_log_scale + raw, LOG_SCALE_BOUND)


def plain_actnorm(channels: int, context_channels: int) -> ActNorm:
    """Build Glow's actnorm."""
    return ActNorm(channels)


ACTNORMS = {"plain": plain_actnorm, "conditional": ConditionalActNorm}
