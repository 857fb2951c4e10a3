"""Base distributions of standardised latents, `[N, M]` flattened: independent, or correlated by a few factors."""

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
# Share of a latent's variance that the factors may never take at the start; keeps the diagonal well away from zero.
UNEXPLAINED = 0.1
# Scale of the factors that training latents say nothing about: at exactly zero their gradient would vanish.
IDLE_FACTOR = 1e-3


class StandardNormal(nn.Module):
    """`N(0, I)`."""

    def log_prob(self, e: Tensor) -> Tensor:
        """Log-density in nats, `[N, M] -> [N]`."""
        return -0.5 * (upcast(e).square() + log(2 * pi)).sum(1)

    def sample(
        self, count: int, like: Tensor, generator: torch.Generator | None = None, tool: NoiseTransform | None = None
    ) -> Tensor:
        """Draw `[count, M]` with the size M, type and device of `like[M]`; `tool` may work on the noise."""
        noise = standard_noise((count, like.numel()), like, generator)
        return noise if tool is None else tool(noise)

    def initialize(self, latents: Tensor) -> None:
        """Nothing to set."""


class LowRankGaussian(nn.Module):
    """`N(0, S)` with `S = diag(d^2) + A A^T` and A of rank r: latents that rise and fall together.

    Errors of a synthetic image are correlated over whole regions, which independent latents cannot express: their
    regional means average out. With `K = I + A^T diag(d^-2) A` (an r x r matrix), density and determinant are exact by
    the Woodbury identity and the determinant lemma:

        e^T S^-1 e = |e/d|^2 - b^T K^-1 b,    b = A^T diag(d^-2) e,    log|S| = sum log d^2 + log|K|
    """

    initialized: Tensor

    def __init__(self, size: int, rank: int, shrinkage: float = 0.7) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.factors = nn.Parameter(IDLE_FACTOR * torch.randn(size, rank))
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
            root = torch.linalg.cholesky(identity + scaled.T @ scaled)
            explained = torch.linalg.solve_triangular(root, (whitened @ scaled).T, upper=False)
            distance = whitened.square().sum(1) - explained.square().sum(0)
            log_volume = 2 * log_diagonal.sum() + 2 * root.diagonal().log().sum()
            density: Tensor = -0.5 * (distance + log_volume + e.shape[1] * log(2 * pi))
            return density

    def sample(
        self, count: int, like: Tensor, generator: torch.Generator | None = None, tool: NoiseTransform | None = None
    ) -> Tensor:
        """Draw `[count, M]` as `d * eps + A xi` with standard normal eps and xi; `tool` may work on eps.

        Tools take their noise to be white: they are not given what the factors have correlated.
        """
        self._check(like.numel())
        with torch.autocast(like.device.type, enabled=False):
            factors = upcast(self.factors)
            eps = standard_noise((count, len(factors)), factors, generator)
            xi = standard_noise((count, factors.shape[1]), factors, generator)
            eps = eps if tool is None else tool(eps)
            return (eps * self._diagonal()[0] + xi @ factors.T).to(like.dtype)

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        """Start, once, at the principal components of training latents `[M', M]`, taken about zero as the base is.

        The factors take `shrinkage` of each component's variance, for the leading variances of few samples are too
        large; the diagonal takes the rest, so that every latent keeps its own variance.
        """
        self._check(latents.shape[1])
        if self.initialized:
            return
        latents = upcast(latents)
        count = min(len(latents), self.factors.shape[1])
        variance = latents.square().mean(0).clamp_min(1e-6)
        # Principal components of few long vectors through the small matrix of their inner products.
        power, mixture = torch.linalg.eigh(latents @ latents.T / len(latents))
        directions = (mixture[:, -count:].T @ latents).T / (len(latents) * power[-count:].clamp_min(1e-12)).sqrt()
        factors = directions * (self.shrinkage * power[-count:].clamp_min(0)).sqrt()
        left = torch.maximum(variance - factors.square().sum(1), UNEXPLAINED * variance)
        self.factors[:, :count] = factors.to(self.factors.dtype)
        self.raw_log_diagonal.copy_(soft_bound_inverse(0.5 * left.log(), LOG_DIAGONAL_BOUND))
        self.initialized.fill_(True)

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Multiply every standard deviation by `scale`; correlations stay."""
        self.factors.mul_(scale)
        self.raw_log_diagonal.copy_(soft_bound_inverse(self._diagonal()[1] + log(scale), LOG_DIAGONAL_BOUND))

    def _diagonal(self) -> tuple[Tensor, Tensor]:
        log_diagonal = soft_bound(upcast(self.raw_log_diagonal), LOG_DIAGONAL_BOUND)
        return log_diagonal.exp(), log_diagonal

    def _check(self, size: int) -> None:
        if size != len(self.factors):
            raise ShapeError(
                f"the low-rank base was built for {len(self.factors)} latents and got {size}; "
                "give volumes of the size the model was built for, or set low_rank: 0"
            )
