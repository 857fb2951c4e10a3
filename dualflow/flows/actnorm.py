"""Activation normalisation: one scale and shift per channel, set from data before training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import Bijection, soft_bound, soft_bound_inverse, wide

LOG_SCALE_BOUND = 6.0
CONSTANT_CHANNEL = 1e-4


class ActNorm(Bijection):
    """Affine map per channel (Kingma & Dhariwal 2018, section 3.1), with a bounded scale.

        z_c = s_c (x_c + b_c),    log|det| = V sum_c log s_c,    V = D H W voxels

    `initialize` makes every channel of the given batch zero-mean and unit-variance, once: the flag is a buffer, so
    that a restored model is never re-initialised. A channel that is constant keeps scale 1, for its reciprocal
    deviation means nothing.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1, 1))
        self.raw_log_scale = nn.Parameter(torch.zeros(channels, 1, 1, 1))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        log_scale = soft_bound(self.raw_log_scale, LOG_SCALE_BOUND)
        return (x + self.shift) * log_scale.exp(), self._log_det(x, log_scale)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Divide, then shift back."""
        log_scale = soft_bound(self.raw_log_scale, LOG_SCALE_BOUND)
        return z * (-log_scale).exp() - self.shift, -self._log_det(z, log_scale)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set scale and shift from the batch `[N, C, D, H, W]`, unless that has been done."""
        if not self.initialized:
            channels = wide(x).transpose(0, 1).flatten(1)
            deviation = channels.std(1)
            log_scale = torch.where(deviation > CONSTANT_CHANNEL, -deviation.log(), torch.zeros_like(deviation))
            self.shift.copy_(-channels.mean(1).view_as(self.shift))
            self.raw_log_scale.copy_(soft_bound_inverse(log_scale, LOG_SCALE_BOUND).view_as(self.shift))
            self.initialized.fill_(True)
        return super().initialize(x, context)

    @staticmethod
    def _log_det(x: Tensor, log_scale: Tensor) -> Tensor:
        return (x[0, 0].numel() * wide(log_scale).sum()).expand(x.shape[0])
