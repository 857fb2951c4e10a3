"""Invertible 1x1x1 convolution: a learnt linear map across channels, the same at every voxel."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from dualflow.flows.bijection import Bijection, soft_bound, soft_bound_inverse, wide

LOG_DIAGONAL_BOUND = 5.0
# Channels up to which the triangles are stored as they are. Wider ones carry a gain, because one optimiser step moves
# all of their C^2 / 2 entries, and small moves of a wide triangle make it near singular.
NARROW = 8


class InvertibleMixing(Bijection):
    """Channel mixing in LU form (Kingma & Dhariwal 2018, equation 10).

        z_v = W x_v,    W = P L (U + diag(sign * s)),    log|det| = V sum_c log s_c

    `P` and `sign` stay fixed, `L` is unit lower and `U` strictly upper triangular, `log s` is bounded: W can neither
    become singular nor change orientation. The inverse is two triangular solves. Both directions run outside
    autocast, for data that is rounded to bfloat16 on the way cannot be recovered.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, rotation: Tensor) -> None:
        """Start at a given invertible matrix `[C, C]`, in practice a rotation."""
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.gain = min(1.0, sqrt(NARROW / len(rotation)))
        self.lower = nn.Parameter(lower.tril(-1) / self.gain)
        self.upper = nn.Parameter(upper.triu(1) / self.gain)
        self.raw_log_diagonal = nn.Parameter(soft_bound_inverse(diagonal.abs().log(), LOG_DIAGONAL_BOUND))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply every voxel's channel vector by W."""
        with torch.autocast(x.device.type, enabled=False):
            lower, upper, log_det = self._factors(x)
            mixed = (self.permutation @ lower @ upper) @ wide(x).flatten(2)
            return mixed.view_as(x), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve for the channel vector that W maps to z."""
        with torch.autocast(z.device.type, enabled=False):
            lower, upper, log_det = self._factors(z)
            x = self.permutation.T @ wide(z).flatten(2)
            x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
            x = torch.linalg.solve_triangular(upper, x, upper=True)
            return x.view_as(z), -log_det

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_diagonal = soft_bound(wide(self.raw_log_diagonal), LOG_DIAGONAL_BOUND)
        lower = self.gain * self.lower.tril(-1) + torch.eye(len(log_diagonal), dtype=self.lower.dtype, device=x.device)
        upper = self.gain * self.upper.triu(1) + torch.diag(self.sign * log_diagonal.exp())
        return lower, upper, (x[0, 0].numel() * log_diagonal.sum()).expand(x.shape[0])


def random_rotations(channels: int, count: int, *, closing: bool) -> list[Tensor]:
    """Draw `count` orthogonal `[C, C]` matrices; `closing` makes the last one undo the product of the others.

    A closed set leaves the channels of an untrained level in the order in which its squeeze gave them, so that a split
    after Haar factors out detail bands and not a blend of all of them.
    """
    rotations = [torch.linalg.qr(torch.randn(channels, channels))[0] for _ in range(count)]
    if closing:
        product = torch.eye(channels)
        for rotation in rotations[:-1]:
            product = rotation @ product
        rotations[-1] = product.T
    return rotations
