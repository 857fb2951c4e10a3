"""Bijection: the interface of every invertible layer, with `forward`, `inverse` and their log-determinants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible map `z = f(x; context)` with a known Jacobian determinant.

    Sign convention: `forward` returns `log |det dz/dx|` and `inverse` returns its negative. Log-determinants have
    shape `[N]` and are float32 or wider, independent of the precision of the networks inside.
    """

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; return `(z, log_det[N])`."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data; return `(x, -log_det[N])`."""

    def reconstruct(
        self, out: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Recover the input from the output, and apply the map to it again with an autograd graph.

        Args:
            out: output of `forward`, or of `inverse`.
            context: the context of that call.
            inverse: whether `out` is the output of `inverse`.

        Returns:
            The input as leaf tensors that concatenate along the channel axis; the output; the log-determinant.
        """
        undo, apply = (self, self.inverse) if inverse else (self.inverse, self)
        with torch.no_grad():
            x = undo(out, context)[0]
        return (x.requires_grad_(),), *apply(x, context)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set data-dependent parameters from one batch, and return the batch mapped forward."""
        z: Tensor = self(x, context)[0]
        return z


class Sequential(Bijection):
    """Composition `f_K o ... o f_1` of bijections; log-determinants add."""

    def __init__(self, pieces: Iterable[Bijection]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the pieces first to last."""
        log_det = zero_log_det(x)
        for piece in self.pieces:
            x, term = piece(x, context)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverses last to first."""
        log_det = zero_log_det(z)
        for piece in reversed(self.pieces):
            assert isinstance(piece, Bijection)
            z, term = piece.inverse(z, context)
            log_det = log_det + term
        return z, log_det

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialise each piece on the output of the pieces before it."""
        for piece in self.pieces:
            assert isinstance(piece, Bijection)
            x = piece.initialize(x, context)
        return x


def upcast(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider, the precision of log-determinants, densities and solves."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def zero_log_det(x: Tensor) -> Tensor:
    """Return `[N]` zeros, the log-determinant of a volume-preserving map."""
    return upcast(x.new_zeros(x.shape[0]))


def sum_per_sample(x: Tensor) -> Tensor:
    """Sum over all axes but the batch axis, `[N, ...] -> [N]`."""
    return upcast(x).flatten(1).sum(1)


def soft_bound(raw: Tensor, bound: float) -> Tensor:
    """Return `bound * tanh(raw / bound)`: close to the identity near 0, and at most `bound` in size.

    A scale `exp(soft_bound(...))` and its reciprocal are both finite, so neither direction of a deep flow can explode
    (Behrmann et al. 2021).
    """
    return bound * torch.tanh(raw / bound)


def soft_bound_inverse(value: Tensor, bound: float) -> Tensor:
    """Return the raw parameter with this `soft_bound`, clamped away from the ends where the gradient vanishes."""
    return bound * torch.atanh((value / bound).clamp(-0.99, 0.99))
