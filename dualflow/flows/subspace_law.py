"""SubspaceLaw: the law of a few latent coordinates, with person-dependent spread and a mixture of subtypes."""

from __future__ import annotations

from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.rng import standard_noise, uniform_noise

COMPONENTS = 3
"""Largest number of mixture components."""
LEADING = 4
"""Largest number of coordinates that follow the mixture."""
UNUSED = -1e4
"""Logit of an unused mixture component."""


class LawParameters(NamedTuple):
    """Parameters of a SubspaceLaw.

    Attributes:
        means: of the mixture, `[K, q]`.
        cholesky: lower Cholesky factors of the mixture's covariances, `[K, q, q]`.
        gate: coefficients of the mixture weights' logits, `[K, 1 + F]`.
        variance: variance of the other coordinates that scales with the person's spread, `[r - q]`.
        floor: variance of the other coordinates that does not, `[r - q]`.
    """

    means: Tensor
    cholesky: Tensor
    gate: Tensor
    variance: Tensor
    floor: Tensor


class SubspaceLaw(nn.Module):
    """The law of coordinates t `[N, r]` given person features x `[N, F]`.

    With the spread s = g s(x), where s(x) is log-linear, and the first q coordinates t_A:

        t_A ~ sum_k pi_k(x) N(s m_k, s^2 S_k),  pi = softmax(B [1, x]);    t_j ~ N(0, s^2 l_j + f_j), j > q

    The mixture lets a law have several modes, such as subtypes of patients that the source does not show. The gain g is
    the region calibration. A new law is standard normal.

    Args:
        rank: number of coordinates, r.
        features: number of person features, F.
    """

    means: Tensor
    cholesky: Tensor
    gate: Tensor
    variance: Tensor
    floor: Tensor
    gain: Tensor

    def __init__(self, rank: int, features: int) -> None:
        super().__init__()
        self.rank, self.leading = rank, min(LEADING, rank)
        gate = torch.zeros(COMPONENTS, 1 + features)
        gate[1:, 0] = UNUSED
        self.register_buffer("means", torch.zeros(COMPONENTS, self.leading))
        self.register_buffer("cholesky", torch.eye(self.leading).repeat(COMPONENTS, 1, 1))
        self.register_buffer("gate", gate)
        self.register_buffer("variance", torch.ones(rank - self.leading))
        self.register_buffer("floor", torch.zeros(rank - self.leading))
        self.spread = LogLinearScale(features)
        self.register_buffer("gain", torch.ones(()))

    def set_parameters(self, parameters: LawParameters) -> None:
        """Set the mixture and the variances; a mixture of fewer components leaves the others unused."""
        count = len(parameters.means)
        self.means[:count], self.cholesky[:count] = parameters.means, parameters.cholesky
        self.gate[:count], self.gate[count:] = parameters.gate, 0.0
        self.gate[count:, 0] = UNUSED
        self.variance.copy_(parameters.variance)
        self.floor.copy_(parameters.floor)

    def log_prob(self, t: Tensor, person: Tensor | None = None) -> Tensor:
        """Return the log-density in nats, `[N, r] -> [N]`."""
        scale, weights = self._conditioned(t, person)
        leading, others = t[:, : self.leading] / scale, t[:, self.leading :]
        offsets = (leading[None] - self.means[:, None]).transpose(1, 2).to(self.cholesky.dtype)
        solved = torch.linalg.solve_triangular(self.cholesky, offsets, upper=False)
        log_dets = self.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        parts = -0.5 * solved.square().sum(1) - log_dets[:, None] + weights.T
        variance = scale.square() * self.variance + self.floor
        gaussian = (others.square() / variance + variance.log()).sum(1) + self.rank * log(2 * pi)
        return torch.logsumexp(parts, dim=0) - self.leading * scale[:, 0].log() - 0.5 * gaussian

    def sample(
        self, count: int, person: Tensor | None, like: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `[count, r]`, with the type and device of `like`, for person features `[count, F]`."""
        noise = standard_noise((count, self.rank), like, generator)
        scale, weights = self._conditioned(noise, person)
        cumulative = weights.exp().cumsum(1)
        choice = (uniform_noise(noise[:, :1], generator) > cumulative[:, :-1]).sum(1)
        leading = self.means[choice] + (self.cholesky[choice] @ noise[:, : self.leading, None])[..., 0]
        others = noise[:, self.leading :] * (scale.square() * self.variance + self.floor).sqrt()
        return torch.cat([scale * leading, others], dim=1)

    def _conditioned(self, t: Tensor, person: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the spread `[N, 1]` and the logarithms of the mixture weights `[N, K]`."""
        x = t.new_zeros(len(t), self.gate.shape[1] - 1) if person is None else person.to(t.dtype)
        logits = self.gate[:, 0] + x @ self.gate[:, 1:].T
        return self.gain * self.spread(x)[:, None], torch.log_softmax(logits, dim=1)
