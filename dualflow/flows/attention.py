"""Invertible attention layers with the whole volume as receptive field.

Attention is a layer of the flow, not a part of a coupling's network (Sukthanker et al. 2022, CVPR). One part of the
data stays unchanged, and attention over it and the context transforms the rest. Tokens are cubes of `patch^3` voxels,
so the receptive field is the volume at the cost of a coarse grid.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, gcd, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.errors import ShapeError
from dualflow.flows.bijection import Bijection, Sequential, soft_bound, sum_per_sample, upcast
from dualflow.flows.linalg import log_abs_det, solve
from dualflow.flows.network import RMSNorm, ZeroConv

TOKEN_CHANNELS = 32
HEADS = 2
LOG_SCALE_BOUND = 1.0
MAX_TOKENS = 4096
"""Largest number of tokens T: dense T x T algebra takes 67 MB per head and sample in float32, and O(T^3) time."""
MAX_STRENGTH = 1 / 1.1
"""Bound on |t| in I + t A, which is singular at t = -1; with it the condition number is at most 21 for any A."""


class PatchEmbedding(nn.Module):
    """Embed each `patch^3` cube of data and context as one token, by the sum of two strided convolutions."""

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.data = nn.Conv3d(channels, TOKEN_CHANNELS, patch, stride=patch)
        self.context = (
            nn.Conv3d(context_channels, TOKEN_CHANNELS, patch, stride=patch, bias=False) if context_channels else None
        )

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map `[N, C, D, H, W]` to `[N, TOKEN_CHANNELS, D/patch, H/patch, W/patch]`.

        Raises:
            ShapeError: the grid does not divide into patches, or the context is missing.
        """
        check_grid(tuple(x.shape[2:]), self.patch)
        tokens: Tensor = self.data(x)
        if self.context is None:
            return tokens
        if context is None:
            raise ShapeError(
                f"attention was built for {self.context.in_channels} context channels and got no context; "
                "pass one, or build it with context_channels 0"
            )
        tokens += self.context(context)
        return tokens


class GlobalScale(nn.Module):
    """One unbounded log-scale per voxel, from self-attention over all tokens and from the voxel itself."""

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.tokens = PatchEmbedding(channels, context_channels, patch)
        self.local = PatchEmbedding(channels, context_channels, 1)
        self.token_norm = RMSNorm(TOKEN_CHANNELS)
        self.queries_keys_values = nn.Conv3d(TOKEN_CHANNELS, 3 * TOKEN_CHANNELS, 1, bias=False)
        self.norm = RMSNorm(TOKEN_CHANNELS)
        self.last = ZeroConv(TOKEN_CHANNELS, 1, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map `[N, C, D, H, W]` to `[N, 1, D, H, W]`."""
        tokens = self.token_norm(self.tokens(x, context))
        query, key, value = (_to_heads(part, HEADS) for part in self.queries_keys_values(tokens).chunk(3, dim=1))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(tokens.shape)
        upsampled = F.interpolate(tokens + attended, scale_factor=self.patch, mode="nearest")
        out: Tensor = self.last(self.norm(F.silu(upsampled + self.local(x, context))))
        return out


class IMapAttention(Bijection):
    """iMap: attention over a checkerboard half of the entries scales the other half.

        M[c, v] = (c + i + j + k) mod 2,    z = x [M s_c + (1 - M) a_v],    log a_v = bounded attention(M x, context)
        log|det| = sum_{M=1} log s_c + sum_v (number of free channels at v) log a_v

    The scale of the free entries depends only on the masked entries, which have a constant scale. The Jacobian is
    therefore triangular for any network. The layer starts as the identity. The paper's map reads a single voxel; tokens
    extend it to the volume.
    """

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        self.raw_log_scale = nn.Parameter(torch.zeros(channels, 1, 1, 1))
        self.network = GlobalScale(channels, context_channels, patch)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale both halves."""
        mask = checkerboard(x)
        log_scale = self._log_scale(mask, mask * x, context)
        return x * log_scale.exp(), sum_per_sample(log_scale)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Recover the masked half by its constant scale, compute the scales from it, and divide."""
        mask = checkerboard(z)
        masked = mask * z * (-soft_bound(self.raw_log_scale, LOG_SCALE_BOUND)).exp()
        log_scale = self._log_scale(mask, masked, context)
        return z * (-log_scale).exp(), -sum_per_sample(log_scale)

    def _log_scale(self, mask: Tensor, masked: Tensor, context: Tensor | None) -> Tensor:
        free = soft_bound(self.network(masked, context).to(masked.dtype), LOG_SCALE_BOUND)
        return torch.where(mask, soft_bound(self.raw_log_scale, LOG_SCALE_BOUND), free)


class ITransAttention(Bijection):
    """iTrans, spatial form: attention computed from one channel half mixes the tokens of the other half.

        A = softmax(q k^T / sqrt d),  (q, k) = read(x_a, context),    G = I + t A,  t = tanh(rho) / 1.1
        z = (x_a, G x_b),    log|det| = sum_heads C_head patch^3 log|det G_head|

    Up to a scale this is the paper's A + w I, w > 1, with a learnt sign: the forward map must shrink the tokens' common
    part (t < 0), and a positive weight cannot. Rows of A sum to 1 and |t| < 1, so G is strictly diagonally dominant and
    never singular; t starts at 0, the identity. Heads are groups of the channels of x_b, a block-diagonal map, so their
    log-determinants add. Both directions run outside autocast, because a solve with rounded numbers
    does not recover the data.
    """

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        if channels % 2:
            raise ShapeError(f"attention across a channel split needs an even number of channels, got {channels}")
        self.patch = patch
        self.heads = gcd(HEADS, channels // 2)
        self.tokens = PatchEmbedding(channels // 2, context_channels, patch)
        self.norm = RMSNorm(TOKEN_CHANNELS)
        self.queries_keys = nn.Conv3d(TOKEN_CHANNELS, 2 * TOKEN_CHANNELS, 1, bias=False)
        self.raw_strength = nn.Parameter(torch.zeros(self.heads, 1, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply the second half's tokens by G."""
        with torch.autocast(x.device.type, enabled=False):
            x_a, x_b = upcast(x).chunk(2, dim=1)
            mixing = self._mixing(x_a, context)
            z_b = from_patches(mixing @ to_patches(x_b, self.heads, self.patch), x_b.shape, self.patch)
            return torch.cat([x_a, z_b], dim=1), self._log_det(mixing, x_b)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve G x_b = z_b, with G from the unchanged first half."""
        with torch.autocast(z.device.type, enabled=False):
            z_a, z_b = upcast(z).chunk(2, dim=1)
            mixing = self._mixing(z_a, context)
            solved = solve(mixing, to_patches(z_b, self.heads, self.patch))
            return torch.cat([z_a, from_patches(solved, z_b.shape, self.patch)], dim=1), -self._log_det(mixing, z_b)

    def _mixing(self, x_a: Tensor, context: Tensor | None) -> Tensor:
        """Return G, `[N, heads, T, T]`."""
        check_grid(tuple(x_a.shape[2:]), self.patch, MAX_TOKENS)
        tokens = self.norm(self.tokens(x_a, None if context is None else context.to(x_a.dtype)))
        query, key = (_to_heads(part, self.heads) for part in self.queries_keys(tokens).chunk(2, dim=1))
        attention = torch.softmax(query @ key.transpose(2, 3) / sqrt(query.shape[3]), dim=3)
        identity = torch.eye(attention.shape[3], dtype=attention.dtype, device=attention.device)
        return identity + MAX_STRENGTH * torch.tanh(self.raw_strength) * attention

    def _log_det(self, mixing: Tensor, x_b: Tensor) -> Tensor:
        repeats = x_b[0].numel() // (self.heads * mixing.shape[3])
        log_det: Tensor = repeats * log_abs_det(mixing).sum(1)
        return log_det


def checkerboard(x: Tensor) -> Tensor:
    """Return a mask `[C, D, H, W]` that alternates along the channels and every axis of `x[N, C, D, H, W]`."""
    axes = [torch.arange(size, device=x.device) for size in x.shape[1:]]
    c, i, j, k = torch.meshgrid(axes, indexing="ij")
    return (c + i + j + k) % 2 == 1


def to_patches(x: Tensor, heads: int, patch: int) -> Tensor:
    """Cut a volume into cubes, `[N, C, D, H, W] -> [N, heads, T, C / heads * patch^3]`, one row per cube."""
    d, h, w = (size // patch for size in x.shape[2:])
    cubes = x.reshape(len(x), heads, -1, d, patch, h, patch, w, patch)
    return cubes.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(len(x), heads, d * h * w, -1)


def from_patches(rows: Tensor, shape: torch.Size, patch: int) -> Tensor:
    """Undo `to_patches`; `shape` is the shape of the volume."""
    d, h, w = (size // patch for size in shape[2:])
    cubes = rows.reshape(*rows.shape[:2], d, h, w, -1, patch, patch, patch)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(shape)


def check_grid(shape: tuple[int, ...], patch: int, max_tokens: int | None = None) -> None:
    """Check that patches tile the grid, with at most `max_tokens` of them.

    Raises:
        ShapeError: they do not; the message names a grid that works.
    """
    if gcd(*shape) % patch:
        padded = tuple(ceil(size / patch) * patch for size in shape)
        raise ShapeError(
            f"grid {shape} does not divide by patch {patch}; pad it to {padded}, or choose attention: none"
        )
    tokens = torch.Size(shape).numel() // patch**3
    if max_tokens is not None and tokens > max_tokens:
        raise ShapeError(
            f"grid {shape} in patches of {patch} makes {tokens} tokens, more than {max_tokens}; "
            "choose more levels, or attention: none"
        )


def _to_heads(x: Tensor, heads: int) -> Tensor:
    """Split channels into heads, `[N, heads * F, D, H, W] -> [N, heads, T, F]`."""
    return x.reshape(len(x), heads, x.shape[1] // heads, -1).transpose(2, 3)


def no_attention(channels: int, context_channels: int, patch: int) -> Bijection:
    """Build the identity."""
    return Sequential([])


ATTENTIONS: dict[str, Callable[[int, int, int], Bijection]] = {
    "none": no_attention,
    "imap": IMapAttention,
    "itrans": ITransAttention,
}
