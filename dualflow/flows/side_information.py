"""Side information (age, diagnosis, ...): check, embedding with tokens for unknown values, discriminators."""

from __future__ import annotations

from math import exp
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.errors import ShapeError
from dualflow.flows.bijection import upcast
from dualflow.flows.network import Convolution, RMSNorm
from dualflow.flows.rng import uniform_noise

REVERSAL_SLOPE = 10.0


def side_values(side: Tensor | None, source: Tensor, count: int) -> Tensor:
    """Return side values `[N, S]`, all unknown (NaN) where none are given.

    Args:
        side: `[N, S]` or None.
        source: `[N, ...]`, whose dtype and device unknown values have.
        count: number S of side values per subject.

    Raises:
        ShapeError: they are not `[N, S]`.
    """
    expected = (len(source), count)
    if side is None:
        return source.new_full(expected, torch.nan)
    if tuple(side.shape) != expected:
        raise ShapeError(
            f"side information of size {tuple(side.shape)}, expected {expected}; "
            "give one row per volume, NaN where unknown"
        )
    return side


def known_side(side: Tensor | None, source: Tensor, count: int) -> Tensor:
    """Return `side_values` with a flag each, `[N, 2S]`: unknown (NaN) is value 0 and flag 0."""
    values = side_values(side, source, count)
    return torch.cat([torch.nan_to_num(values, nan=0.0), (~values.isnan()).to(values.dtype)], dim=1)


class SideTokens(nn.Module):
    """Embedding of side information `[N, S]`; NaN marks an unknown value.

    A learnt token per feature replaces unknown values. Training hides known values at random, single values and whole
    rows (because the columns of one category are missing together). The model therefore sees every pattern of missing
    values, and the effect of a feature can be switched off.

    Args:
        features: number of features, S.
        embedding: size of the embedding, E.
        dropout: probability of hiding a value, and of hiding a row.
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
        """Replace NaN and dropped values by the tokens; values of any number type become the model's."""
        side = side.to(self.token.dtype)
        unknown = side.isnan()
        if self.training and self.dropout:
            unknown = unknown | (uniform_noise(side) < self.dropout) | (uniform_noise(side[:, :1]) < self.dropout)
        return torch.where(unknown, self.token, side.nan_to_num())


class _GradientReversal(torch.autograd.Function):
    """Identity in the forward pass, times `-strength` in the backward pass (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reversal_strength(progress: float) -> float:
    """Return the strength of the gradient reversal at a training progress of 0 to 1.

    The strength rises from 0 to 1, so the discriminators learn before the flow adapts to them (Ganin & Lempitsky 2015,
    section 4.1).
    """
    return 2 / (1 + exp(-REVERSAL_SLOPE * progress)) - 1


class SideDiscriminator(nn.Module):
    """Discriminator that predicts side information from the latents of one level.

    One loss serves both players: the discriminator descends its squared error, and the flow ascends it through the
    gradient reversal. The network is nonlinear, so it detects more than a shift of means. Its features are normalised,
    so the flow cannot gain by scaling its latents.

    Args:
        channels: channels of the latents.
        features: number of side features, S.
        hidden: width of the network.
    """

    def __init__(self, channels: int, features: int, hidden: int = 16) -> None:
        super().__init__()
        self.conv = Convolution(channels, hidden, 3)
        self.norm = RMSNorm(hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features))

    def forward(self, latent: Tensor, strength: float = 1.0) -> Tensor:
        """Predict the standardised side values `[N, S]`; the gradient to the latent is reversed."""
        reversed_latent: Tensor = _GradientReversal.apply(latent, strength)  # type: ignore[no-untyped-call]
        pooled = self.norm(F.silu(self.conv(reversed_latent))).mean(dim=(2, 3, 4))
        prediction: Tensor = upcast(self.head(pooled))
        return prediction


def discriminator_error(prediction: Tensor, side: Tensor) -> Tensor:
    """Return the mean squared error, a scalar; unknown values count as errors of 0.

    Predicting the mean gives the variance of a column times the share of its known values. A mean over the known values
    alone would weigh a scan by what is known of the others in its batch, and so depend on how processes share the
    batch.
    """
    known = ~side.isnan()
    return ((prediction - side.nan_to_num()).square() * known).mean()


def discriminator_accuracy(prediction: Tensor, side: Tensor) -> Tensor:
    """Return the share of known values predicted on the correct side of a threshold, a scalar.

    The threshold of a column of zeros and ones, such as a one-hot level, is 0.5, and this is the classification
    accuracy. That of another column is its training mean, 0.
    """
    known, threshold = _known(side)
    correct = (prediction > threshold) == (side.nan_to_num() > threshold)
    return correct.logical_and(known).sum() / known.sum().clamp_min(1)


def chance_accuracy(side: Tensor) -> Tensor:
    """Return the accuracy of guesses that are the same for all of the people, a scalar: chance level, at least 0.5.

    Args:
        side: standardised values of all training people `[N, S]`, NaN where unknown.
    """
    known, threshold = _known(side)
    above = (side > threshold).sum(dim=0)
    return torch.maximum(above, known.sum(dim=0) - above).sum() / known.sum().clamp_min(1)


def _known(side: Tensor) -> tuple[Tensor, Tensor]:
    """Which values are known `[N, S]`, and the threshold of each column `[S]`."""
    known = ~side.isnan()
    binary = ((side == 0) | (side == 1) | ~known).all(dim=0)
    return known, torch.where(binary, 0.5, 0.0)
