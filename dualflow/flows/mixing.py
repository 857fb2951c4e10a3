"""Invertible 1x1x1 convolutions: a learnt linear map across channels, the same at every voxel of a volume."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from dualflow.flows.actnorm import ActNorm
from dualflow.flows.bijection import Bijection, Sequential, soft_bound, soft_bound_inverse, upcast
from dualflow.flows.linalg import solve
from dualflow.flows.network import PooledHead

LOG_DIAGONAL_BOUND = 5.0
NARROW = 8
"""Number of channels up to which the triangles have gain 1.

One optimiser step moves all C^2 / 2 entries, and small moves of a wide triangle make it nearly singular, so wider
triangles carry a smaller gain.
"""
ANGLE_BOUND = 8.0
"""Bound on the parameters of a source-dependent rotation. Every rotation has parameters of at most 4."""
LOG_SINGULAR_BOUND = 1.5
"""Bound on |log| of a singular value of the source-dependent matrix; its condition number is at most exp(3) = 20."""


class InvertibleMixing(Bijection):
    """Channel mixing in LU form (Kingma & Dhariwal 2018, equation 10).

        z_v = W x_v,    W = P L (U + diag(sign * s)),    log|det| = V sum_c log s_c

    `P` and `sign` stay fixed, `L` is unit lower and `U` strictly upper triangular, and `log s` is bounded, so W can
    neither become singular nor change orientation. The inverse is two triangular solves. Both directions run outside
    autocast, because data rounded to bfloat16 cannot be recovered.

    Args:
        rotation: initial invertible matrix `[C, C]`, in practice a rotation.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, rotation: Tensor) -> None:
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
            matrix, log_det = self.matrix(x)
            return (matrix @ upcast(x).flatten(2)).view_as(x), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve for the channel vector that W maps to z."""
        with torch.autocast(z.device.type, enabled=False):
            lower, upper, log_det = self._factors(z)
            x = self.permutation.T @ upcast(z).flatten(2)
            x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
            x = torch.linalg.solve_triangular(upper, x, upper=True)
            return x.view_as(z), -log_det

    def matrix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W `[C, C]`, and the log-determinant `[N]` for a volume of the size of x."""
        lower, upper, log_det = self._factors(x)
        return self.permutation @ lower @ upper, log_det

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_diagonal = soft_bound(upcast(self.raw_log_diagonal), LOG_DIAGONAL_BOUND)
        lower = self.gain * self.lower.tril(-1) + torch.eye(len(log_diagonal), dtype=self.lower.dtype, device=x.device)
        upper = self.gain * self.upper.triu(1) + torch.diag(self.sign * log_diagonal.exp())
        return lower, upper, (x[0, 0].numel() * log_diagonal.sum()).expand(x.shape[0])


class NormalisedMixing(Bijection):
    """An actnorm and the mixing after it, fused into one pass over the volume.

        z_v = W diag(s) (x_v + b) = A x_v + A b,    log|det| = V (sum_c log s_c + log|det W|)

    The parameters are those of the two layers. The inverse matrix is computed in float64.
    """

    def __init__(self, actnorm: ActNorm, mixing: InvertibleMixing) -> None:
        super().__init__()
        self.actnorm, self.mixing = actnorm, mixing

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shift, scale and mix."""
        with torch.autocast(x.device.type, enabled=False):
            matrix, shift, log_det = self._affine(x)
            offset = (matrix @ shift).expand(len(x), -1, -1)
            return torch.baddbmm(offset, matrix.expand(len(x), -1, -1), upcast(x).flatten(2)).view_as(x), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply by the inverse matrix, then shift back."""
        with torch.autocast(z.device.type, enabled=False):
            matrix, shift, log_det = self._affine(z)
            inverse = torch.linalg.inv(matrix.double()).to(matrix.dtype).expand(len(z), -1, -1)
            return torch.baddbmm(-shift.expand(len(z), -1, -1), inverse, upcast(z).flatten(2)).view_as(z), -log_det

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return matrix A `[C, C]`, shift b `[C, 1]` and log-determinant `[N]`."""
        channels = x.shape[1]
        shift, log_scale = self.actnorm.shift_and_log_scale()
        matrix, log_det = self.mixing.matrix(x)
        scaled = matrix * log_scale.exp().view(1, channels)
        return scaled, shift.view(channels, 1), log_det + x[0, 0].numel() * upcast(log_scale).sum()


class ConditionalMatrix(Bijection):
    """A channel-mixing matrix per sample, predicted by a network as a singular value decomposition.

        z_v = M(u) x_v,    M(u) = Q(u) diag(exp a(u)) R(u),    log|det| = V sum_c a_c(u)

    Q and R are any rotations, and |a| < 1.5. M therefore reaches every matrix of positive determinant with singular
    values between exp(-1.5) and exp(1.5), at any distance from the identity, and is well conditioned. The inverse needs
    transposes alone. The network's last layer starts at zero, so M starts as the identity. c-Glow's network returns the
    entries of the matrix, which may become singular.
    """

    def __init__(self, channels: int, context_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = min(1.0, sqrt(NARROW / channels))
        self.head = PooledHead(context_channels, channels**2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply every voxel's channel vector by the sample's M."""
        left, log_values, right = self._decomposition(context)
        with torch.autocast(x.device.type, enabled=False):
            matrix = (left * log_values.exp()[:, None]) @ right
            return (matrix @ upcast(x).flatten(2)).view_as(x), x[0, 0].numel() * log_values.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply by the inverse, from the transposed rotations and the reciprocal singular values."""
        left, log_values, right = self._decomposition(context)
        with torch.autocast(z.device.type, enabled=False):
            matrix = (right.mT * (-log_values).exp()[:, None]) @ left.mT
            return (matrix @ upcast(z).flatten(2)).view_as(z), -z[0, 0].numel() * log_values.sum(1)

    def _decomposition(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotation `[N, C, C]`, log singular values `[N, C]` and rotation `[N, C, C]`."""
        assert context is not None
        raw = upcast(self.head(context)).view(-1, self.channels, self.channels)
        angles = soft_bound(self.gain * raw, ANGLE_BOUND)
        left, right = rotations(angles.tril(-1)), rotations(angles.triu(1))
        return left, soft_bound(raw.diagonal(dim1=1, dim2=2), LOG_SINGULAR_BOUND), right


def rotations(triangles: Tensor) -> Tensor:
    """Return rotations `[N, C, C]` from strict triangles T: the square of a Cayley transform, computed in float64.

        R = (2 (I + S)^-1 - I)^2,    S = (T - T^T) / 4

    Small entries of T are angles of turns in a plane. A Cayley transform reaches every rotation but half turns, and its
    square reaches all, because every rotation has a root without half turns. The singular values of `I + S` are at
    least 1, so the solve is safe for any T.
    """
    skew = (triangles - triangles.mT).double() / 4
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    root = 2 * solve(identity + skew, identity.expand_as(skew)) - identity
    return (root @ root).to(triangles.dtype)


def plain_mixing(rotation: Tensor, context_channels: int) -> Bijection:
    """Build Glow's 1x1x1 convolution."""
    return InvertibleMixing(rotation)


def conditional_mixing(rotation: Tensor, context_channels: int) -> Bijection:
    """Build W(u) = M(u) W, a learnt matrix followed by a source-dependent one (Lu & Huang 2020, section 4.1)."""
    return Sequential([InvertibleMixing(rotation), ConditionalMatrix(len(rotation), context_channels)])


MIXINGS = {"lu": plain_mixing, "conditional": conditional_mixing}


def random_rotations(channels: int, count: int, *, closing: bool) -> list[Tensor]:
    """Draw `count` random orthogonal `[C, C]` matrices; with `closing` their product is the identity.

    A closed set keeps the channel order of the squeeze in an untrained level. A split after a Haar squeeze then
    factors out detail bands, not a mixture of all bands.
    """
    rotations = [torch.linalg.qr(torch.randn(channels, channels))[0] for _ in range(count)]
    if closing and rotations:
        product = torch.eye(channels)
        for rotation in rotations[:-1]:
            product = rotation @ product
        rotations[-1] = product.T
    return rotations
