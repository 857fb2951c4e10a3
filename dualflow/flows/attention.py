"""Invertible attention across splits: what a voxel becomes depends on the whole volume.

Attention is here a layer of the flow itself and not a part of a coupling's network (Sukthanker et al. 2022, CVPR): one
part of the data is left readable, attention over it and the context says what becomes of the rest. Tokens are cubes of
`patch^3` voxels, so that the reach is the volume's while the cost stays that of a coarse grid.
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

WIDTH = 32
HEADS = 2
LOG_SCALE_BOUND = 1.0
# Dense T x T algebra: 67 MB a head and sample in float32 at this many tokens, and the cost grows with T^3.
MAX_TOKENS = 4096
# I + t A is singular at t = -1 and has condition number at most 21 for |t| = 1 / 1.1, whatever the attention A.
STRONGEST = 1 / 1.1


class PatchEmbedding(nn.Module):
    """Read one token per `patch^3` cube from data and context on the same grid: strided convolutions, added."""

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.data = nn.Conv3d(channels, WIDTH, patch, stride=patch)
        self.context = nn.Conv3d(context_channels, WIDTH, patch, stride=patch, bias=False) if context_channels else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map `[N, C, D, H, W]` to `[N, WIDTH, D/patch, H/patch, W/patch]`.

        Raises:
            ShapeError: the grid does not divide into patches, or a context that the layer was built for is missing.
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
    """One unbounded log-scale per voxel, from what self-attention over all tokens and the voxel itself say."""

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.tokens = PatchEmbedding(channels, context_channels, patch)
        self.local = PatchEmbedding(channels, context_channels, 1)
        self.token_norm = RMSNorm(WIDTH)
        self.queries_keys_values = nn.Conv3d(WIDTH, 3 * WIDTH, 1, bias=False)
        self.norm = RMSNorm(WIDTH)
        self.last = ZeroConv(WIDTH, 1, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map `[N, C, D, H, W]` to `[N, 1, D, H, W]`."""
        tokens = self.token_norm(self.tokens(x, context))
        query, key, value = (_to_heads(part, HEADS) for part in self.queries_keys_values(tokens).chunk(3, dim=1))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(tokens.shape)
        everywhere = F.interpolate(tokens + attended, scale_factor=self.patch, mode="nearest")
        out: Tensor = self.last(self.norm(F.silu(everywhere + self.local(x, context))))
        return out


class IMapAttention(Bijection):
    """iMap: a checkerboard half of the entries decides, by attention, how every voxel scales its other half.

        M[c, v] = (c + i + j + k) mod 2,    z = x [M s_c + (1 - M) a_v],    log a_v = bounded attention(M x, context)
        log|det| = sum_{M=1} log s_c + sum_v (number of free channels at v) log a_v

    The free entries' scale reads only the masked ones, which scale themselves by a constant: triangular, so exact for
    any network. Starts as the identity. The paper's map reads the voxel alone; tokens give it the volume.
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
        """Recover the masked half by its constant scale, read the map from it, and divide."""
        mask = checkerboard(z)
        masked = mask * z * (-soft_bound(self.raw_log_scale, LOG_SCALE_BOUND)).exp()
        log_scale = self._log_scale(mask, masked, context)
        return z * (-log_scale).exp(), -sum_per_sample(log_scale)

    def _log_scale(self, mask: Tensor, masked: Tensor, context: Tensor | None) -> Tensor:
        free = soft_bound(self.network(masked, context).to(masked.dtype), LOG_SCALE_BOUND)
        return torch.where(mask, soft_bound(self.raw_log_scale, LOG_SCALE_BOUND), free)


class ITransAttention(Bijection):
    """iTrans, spatial form: the tokens of one channel half are mixed by attention that is read from the other half.

        A = softmax(q k^T / sqrt d),  (q, k) = read(x_a, context),    G = I + t A,  t = tanh(rho) / 1.1
        z = (x_a, G x_b),    log|det| = sum_heads C_head patch^3 log|det G_head|

    Up to a scale this is the paper's A + w I, w > 1, with a sign that is learnt: towards the latents, what tokens have
    in common must shrink (t < 0), which a positive weight cannot do. Rows of A sum to 1 and |t| < 1, so G is strictly
    diagonally dominant and never singular; t starts at 0, the identity. Heads are groups of the channels of x_b, a
    block-diagonal map, so their log-determinants add. Everything runs outside autocast: a solve of rounded numbers
    would not give the data back.
    """

    def __init__(self, channels: int, context_channels: int, patch: int) -> None:
        super().__init__()
        if channels % 2:
            raise ShapeError(f"attention across a channel split needs an even number of channels, got {channels}")
        self.patch = patch
        self.heads = gcd(HEADS, channels // 2)
        self.tokens = PatchEmbedding(channels // 2, context_channels, patch)
        self.norm = RMSNorm(WIDTH)
        self.queries_keys = nn.Conv3d(WIDTH, 2 * WIDTH, 1, bias=False)
        self.raw_strength = nn.Parameter(torch.zeros(self.heads, 1, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply the second half's tokens by G."""
        with torch.autocast(x.device.type, enabled=False):
            x_a, x_b = upcast(x).chunk(2, dim=1)
            mixing = self._mixing(x_a, context)
            z_b = from_patches(mixing @ to_patches(x_b, self.heads, self.patch), x_b.shape, self.patch)
            return torch.cat([x_a, z_b], dim=1), self._log_det(mixing, x_b)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve G x_b = z_b; the first half, from which G comes, is unchanged."""
        with torch.autocast(z.device.type, enabled=False):
            z_a, z_b = upcast(z).chunk(2, dim=1)
            mixing = self._mixing(z_a, context)
            solved = solve(mixing, to_patches(z_b, self.heads, self.patch))
            return torch.cat([z_a, from_patches(solved, z_b.shape, self.patch)], dim=1), -self._log_det(mixing, z_b)

    def _mixing(self, x_a: Tensor, context: Tensor | None) -> Tensor:
        """G, `[N, heads, T, T]`."""
        check_grid(tuple(x_a.shape[2:]), self.patch, MAX_TOKENS)
        tokens = self.norm(self.tokens(x_a, None if context is None else context.to(x_a.dtype)))
        query, key = (_to_heads(part, self.heads) for part in self.queries_keys(tokens).chunk(2, dim=1))
        attention = torch.softmax(query @ key.transpose(2, 3) / sqrt(query.shape[3]), dim=3)
        identity = torch.eye(attention.shape[3], dtype=attention.dtype, device=attention.device)
        return identity + STRONGEST * torch.tanh(self.raw_strength) * attention

    def _log_det(self, mixing: Tensor, x_b: Tensor) -> Tensor:
        copies = x_b[0].numel() // (self.heads * mixing.shape[3])
        log_det: Tensor = copies * log_abs_det(mixing).sum(1)
        return log_det


def checkerboard(x: Tensor) -> Tensor:
    """Mask `[C, D, H, W]` that alternates along the channels and every axis of `x[N, C, D, H, W]`."""
    axes = [torch.arange(size, device=x.device) for size in x.shape[1:]]
    c, i, j, k = torch.meshgrid(axes, indexing="ij")
    return (c + i + j + k) % 2 == 1


def to_patches(x: Tensor, heads: int, patch: int) -> Tensor:
    """`[N, C, D, H, W] -> [N, heads, T, C / heads * patch^3]`: a row per cube of `patch^3` voxels."""
    d, h, w = (size // patch for size in x.shape[2:])
    cubes = x.reshape(len(x), heads, -1, d, patch, h, patch, w, patch)
    return cubes.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(len(x), heads, d * h * w, -1)


def from_patches(rows: Tensor, shape: torch.Size, patch: int) -> Tensor:
    """Undo `to_patches` for a tensor of the given shape."""
    d, h, w = (size // patch for size in shape[2:])
    cubes = rows.reshape(*rows.shape[:2], d, h, w, -1, patch, patch, patch)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(shape)


def check_grid(shape: tuple[int, ...], patch: int, max_tokens: int | None = None) -> None:
    """Refuse a grid that the patches do not tile, or tile with too many.

    Raises:
        ShapeError: with the grid that would do.
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
    """`[N, heads * F, D, H, W] -> [N, heads, T, F]`."""
    return x.reshape(len(x), heads, x.shape[1] // heads, -1).transpose(2, 3)


def no_attention(channels: int, context_channels: int, patch: int) -> Bijection:
    """The identity."""
    return Sequential([])


ATTENTIONS: dict[str, Callable[[int, int, int], Bijection]] = {
    "none": no_attention,
    "imap": IMapAttention,
    "itrans": ITransAttention,
}
