"""Base distributions of standardised, flattened latents `[N, M]`: white noise, or with a law of a few directions."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.bijection import soft_bound, soft_bound_inverse, upcast
from dualflow.flows.rng import standard_noise
from dualflow.flows.subspace_law import SubspaceLaw

LOG_DIAGONAL_BOUND = 4.0


class StandardNormal(nn.Module):
    """The standard normal distribution `N(0, I)`, for any person."""

    def log_prob(self, e: Tensor, person: Tensor | None = None) -> Tensor:
        """Log-density in nats, `[N, M] -> [N]`."""
        return -0.5 * (upcast(e).square() + log(2 * pi)).sum(1)

    def sample(
        self,
        count: int,
        like: Tensor,
        person: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `[count, M]` with the size M, type and device of `like[M]`."""
        return standard_noise((count, like.numel()), like, generator)


class SubspaceBase(nn.Module):
    """White noise with learnt scales, except in a few fixed directions that follow a law of their own.

    Errors of a synthetic image are correlated over whole regions. Independent latents cannot express this, because
    their errors average out over a region. With scales d, orthonormal directions W `[M, r]`, v = e / d and t = W' v:

        log p(e) = -sum log d - (|v|^2 - |t|^2) / 2 - (M - r) log(2 pi) / 2 + log p_T(t | person)
        sample:    t ~ p_T(. | person),  eps ~ N(0, I),  e = d (eps + W (t - W' eps))

    Any law p_T of r numbers therefore gives an exact base, which is sampled exactly. Training learns d; directions and
    law are set in closed form (`training.fit_base`). Until then p_T is standard normal.

    Args:
        size: number of latents, M.
        law: law of the r coordinates t.
    """

    directions: Tensor

    def __init__(self, size: int, law: SubspaceLaw) -> None:
        super().__init__()
        if law.rank > size:
            raise ShapeError(f"low_rank: {law.rank} directions for {size} latents; choose at most {size}")
        self.law = law
        self.raw_log_diagonal = nn.Parameter(torch.zeros(size))
        self.register_buffer("directions", torch.eye(size, law.rank))

    def log_prob(self, e: Tensor, person: Tensor | None = None) -> Tensor:
        """Log-density in nats of `e[N, M]` given person features `[N, F]`, `[N]`."""
        with torch.autocast(e.device.type, enabled=False):
            log_diagonal = self.log_diagonal()
            white, t = self._split(upcast(e), log_diagonal)
            rest = white.square().sum(1) - t.square().sum(1) + (e.shape[1] - t.shape[1]) * log(2 * pi)
            return self.law.log_prob(t, person) - 0.5 * rest - log_diagonal.sum()

    def sample(
        self,
        count: int,
        like: Tensor,
        person: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `[count, M]` for person features `[count, F]`."""
        self._check(like.numel())
        with torch.autocast(like.device.type, enabled=False):
            log_diagonal = self.log_diagonal()
            eps = standard_noise((count, like.numel()), log_diagonal, generator)
            t = self.law.sample(count, person, log_diagonal, generator)
            e = (eps + (t - eps @ self.directions) @ self.directions.T) * log_diagonal.exp()
            return e.to(like.dtype)

    def coordinates(self, e: Tensor) -> Tensor:
        """Return the coordinates t of latents, `[N, M] -> [N, r]`."""
        return self._split(upcast(e), self.log_diagonal())[1]

    def log_diagonal(self) -> Tensor:
        """Return log d, `[M]`."""
        return soft_bound(upcast(self.raw_log_diagonal), LOG_DIAGONAL_BOUND)

    @torch.no_grad()
    def set_diagonal(self, scale: Tensor) -> None:
        """Set d to `scale[M]`, clamped to its bounds."""
        self.raw_log_diagonal.copy_(soft_bound_inverse(scale.log(), LOG_DIAGONAL_BOUND))

    def _split(self, e: Tensor, log_diagonal: Tensor) -> tuple[Tensor, Tensor]:
        """Return the white latents v and their coordinates t."""
        self._check(e.shape[1])
        white = e * (-log_diagonal).exp()
        return white, white @ self.directions

    def _check(self, size: int) -> None:
        if size != len(self.directions):
            raise ShapeError(
                f"the base was built for {len(self.directions)} latents and got {size}; "
                "pass volumes on the model's grid, or set low_rank: 0"
            )
