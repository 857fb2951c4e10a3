"""Base distributions of standardised, flattened latents `[N, M]`: independent, or correlated by a few factors."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.bijection import soft_bound, soft_bound_inverse, upcast
from dualflow.flows.rng import standard_noise

NoiseTransform = Callable[[Tensor], Tensor]
LOG_DIAGONAL_BOUND = 4.0
MIN_DIAGONAL_SHARE = 0.1
"""Smallest share of a latent's variance that initialisation leaves to the diagonal, so that it stays above zero."""
FACTOR_STD = 1e-3
"""Initial scale of the factors: at exactly zero their gradient would vanish."""


class StandardNormal(nn.Module):
    """The standard normal distribution `N(0, I)`."""

    def log_prob(self, e: Tensor) -> Tensor:
        """Log-density in nats, `[N, M] -> [N]`."""
        return -0.5 * (upcast(e).square() + log(2 * pi)).sum(1)

    def sample(
        self,
        count: int,
        like: Tensor,
        generator: torch.Generator | None = None,
        transform: NoiseTransform | None = None,
    ) -> Tensor:
        """Draw `[count, M]` with the size M, type and device of `like[M]`; `transform` is applied to the noise."""
        noise = standard_noise((count, like.numel()), like, generator)
        return noise if transform is None else transform(noise)

    def initialize(self, latents: Tensor) -> None:
        """Do nothing, because the standard normal has no parameters."""


class LowRankGaussian(nn.Module):
    """A Gaussian `N(0, S)` with low-rank plus diagonal covariance `S = diag(d^2) + A A^T`.

    Errors of a synthetic image are correlated over whole regions. Independent latents cannot express this, because
    their errors average out over a region. With `K = I + A^T diag(d^-2) A` (r x r), density and determinant are exact
    by the Woodbury identity and the matrix determinant lemma:

        e^T S^-1 e = |e/d|^2 - b^T K^-1 b,    b = A^T diag(d^-2) e,    log|S| = sum log d^2 + log|K|

    Args:
        size: number of latents, M.
        rank: number of factors, r.
        shrinkage: share of the variance of each principal component that `initialize` gives to the factors.
    """

    initialized: Tensor

    def __init__(self, size: int, rank: int, shrinkage: float = 0.7) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.factors = nn.Parameter(FACTOR_STD * torch.randn(size, rank))
        self.raw_log_diagonal = nn.Parameter(torch.zeros(size))
        self.register_buffer("initialized", torch.tensor(False))

    def log_prob(self, e: Tensor) -> Tensor:
        """Log-density in nats, `[N, M] -> [N]`."""
        self._check(e.shape[1])
        with torch.autocast(e.device.type, enabled=False):
            log_diagonal, factors = self._diagonal()[1], upcast(self.factors)
            scaled = factors * (-log_diagonal).exp()[:, None]
            whitened = upcast(e) * (-log_diagonal).exp()
            identity = torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
            cholesky = torch.linalg.cholesky(identity + scaled.T @ scaled)
            explained = torch.linalg.solve_triangular(cholesky, (whitened @ scaled).T, upper=False)
            mahalanobis = whitened.square().sum(1) - explained.square().sum(0)
            log_det = 2 * log_diagonal.sum() + 2 * cholesky.diagonal().log().sum()
            log_density: Tensor = -0.5 * (mahalanobis + log_det + e.shape[1] * log(2 * pi))
            return log_density

    def sample(
        self,
        count: int,
        like: Tensor,
        generator: torch.Generator | None = None,
        transform: NoiseTransform | None = None,
    ) -> Tensor:
        """Draw `[count, M]` as `d * eps + A xi` with standard normal eps and xi.

        `transform` is applied to eps alone, because it expects white noise.
        """
        self._check(like.numel())
        with torch.autocast(like.device.type, enabled=False):
            factors = upcast(self.factors)
            eps = standard_noise((count, len(factors)), factors, generator)
            xi = standard_noise((count, factors.shape[1]), factors, generator)
            eps = eps if transform is None else transform(eps)
            return (eps * self._diagonal()[0] + xi @ factors.T).to(like.dtype)

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Set the factors to the uncentred principal components of training latents `[N, M]`; later calls do nothing.

        The factors take the share `shrinkage` of each component's variance, because few samples overestimate the
        leading variances. The diagonal takes the rest, so every latent keeps its variance.
        """
        self._check(latents.shape[1])
        if self.initialized:
            return
        latents = upcast(latents)
        count = min(len(latents), self.factors.shape[1])
        variance = latents.square().mean(0).clamp_min(1e-6)
        # The N x N matrix of inner products has the same nonzero eigenvalues as the M x M covariance.
        eigenvalues, vectors = torch.linalg.eigh(latents @ latents.T / len(latents))
        leading = eigenvalues[-count:]
        components = (vectors[:, -count:].T @ latents).T / (len(latents) * leading.clamp_min(1e-12)).sqrt()
        factors = components * (self.shrinkage * leading.clamp_min(0)).sqrt()
        remainder = torch.maximum(variance - factors.square().sum(1), MIN_DIAGONAL_SHARE * variance)
        self.factors[:, :count] = factors.to(self.factors.dtype)
        self.raw_log_diagonal.copy_(soft_bound_inverse(0.5 * remainder.log(), LOG_DIAGONAL_BOUND))
        self.initialized.fill_(True)

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Multiply every standard deviation by `scale`; correlations do not change."""
        self.factors.mul_(scale)
        self.raw_log_diagonal.copy_(soft_bound_inverse(self._diagonal()[1] + log(scale), LOG_DIAGONAL_BOUND))

    def _diagonal(self) -> tuple[Tensor, Tensor]:
        """Return d and log d, `[M]`."""
        log_diagonal = soft_bound(upcast(self.raw_log_diagonal), LOG_DIAGONAL_BOUND)
        return log_diagonal.exp(), log_diagonal

    def _check(self, size: int) -> None:
        if size != len(self.factors):
            raise ShapeError(
                f"the low-rank base was built for {len(self.factors)} latents and got {size}; "
                "pass volumes on the model's grid, or set low_rank: 0"
            )
