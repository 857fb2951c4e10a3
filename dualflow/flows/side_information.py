"""Side information (age, diagnosis, ...): a learnt token where it is unknown, and networks that hunt it down."""

from __future__ import annotations

from math import exp
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.bijection import upcast
from dualflow.flows.network import Convolution, RMSNorm
from dualflow.flows.rng import uniform_noise

RAMP = 10.0


class SideTokens(nn.Module):
    """Embed side information `[N, S]`, in which NaN stands for unknown.

    Every feature has a learnt token that takes the place of an unknown value. In training, known values are hidden at
    random, one by one and row by row (a whole row, because the columns of one category vanish together), so that
    any pattern of missing values is an input the model has seen, and the effect of a feature can be switched off.
    """

    def __init__(self, features: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.token = nn.Parameter(torch.zeros(features))
        self.embed = nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(self, side: Tensor) -> Tensor:
        """Return the embedding `[N, E]`."""
        out: Tensor = self.embed(self.filled(side))
        return out

    def filled(self, side: Tensor) -> Tensor:
        """Replace NaN, and what dropout hides, by the tokens."""
        unknown = side.isnan()
        if self.training and self.dropout:
            unknown = unknown | (uniform_noise(side) < self.dropout) | (uniform_noise(side[:, :1]) < self.dropout)
        return torch.where(unknown, self.token, side.nan_to_num())


class _Reverse(torch.autograd.Function):
    """Identity forward, `-strength` backward (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reversal_strength(progress: float) -> float:
    """Strength of the reversal at a share of the training, 0 to 1 (Ganin & Lempitsky 2015, section 4.1).

    The discriminators learn from the first step; the flow gives way to them only as they come to know something.
    """
    return 2 / (1 + exp(-RAMP * progress)) - 1


class SideDiscriminator(nn.Module):
    """Predict side information from the latents of a level that should not carry it.

    One loss serves both players: the discriminator descends its squared error, and through the gradient reversal in
    front of it the flow ascends it. Nonlinear, so that it finds more than a shift of means; its features are
    normalised, so that the flow cannot win by merely scaling latents up.
    """

    def __init__(self, channels: int, features: int, hidden: int = 16) -> None:
        super().__init__()
        self.conv = Convolution(channels, hidden, 3)
        self.norm = RMSNorm(hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features))

    def forward(self, latent: Tensor, strength: float = 1.0) -> Tensor:
        """Guess the standardised side values `[N, S]`; gradients leave towards the latent reversed."""
        reversed_latent: Tensor = _Reverse.apply(latent, strength)  # type: ignore[no-untyped-call]
        pooled = self.norm(F.silu(self.conv(reversed_latent))).mean(dim=(2, 3, 4))
        guess: Tensor = upcast(self.head(pooled))
        return guess


def discriminator_error(guess: Tensor, side: Tensor) -> Tensor:
    """Mean squared error over the known values, a scalar: 1 for knowing nothing but the mean; 0 if none is known."""
    known = ~side.isnan()
    return ((guess - side.nan_to_num()).square() * known).sum() / known.sum().clamp_min(1)


def discriminator_accuracy(guess: Tensor, side: Tensor) -> Tensor:
    """Share of the known values that are guessed to the right side of the training mean, a scalar.

    For a standardised two-valued or one-hot column that is the accuracy of the class; for a continuous one, how often
    above-average is told from below. Chance is the larger class's share, about 0.5 for continuous columns.
    """
    known = ~side.isnan()
    return ((guess > 0) == (side.nan_to_num() > 0)).logical_and(known).sum() / known.sum().clamp_min(1)
