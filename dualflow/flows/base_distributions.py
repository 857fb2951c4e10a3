"""Base distributions of standardised, flattened latents `[N, M]`: white noise, or with a law of a few directions."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.bijection import upcast
from dualflow.flows.rng import standard_noise
from dualflow.flows.subspace_law import SubspaceLaw


def white_log_prob(e: Tensor) -> Tensor:
    """Return the log-density of white noise `N(0, I)` in nats, `[N, ...] -> [N]`."""
    return -0.5 * (upcast(e).square() + log(2 * pi)).flatten(1).sum(1)


class SubspaceBase(nn.Module):
    """White noise, except that a few fixed directions follow a law of their own.

    Errors of a synthetic image are correlated over whole regions. Independent latents cannot express this, because
    their errors average out over a region. With orthonormal directions W `[M, r]` and t = W' e:

        log p(e) = log N(e; 0, I) + log p_T(t | person) - log N(t; 0, I)
        sample:    t ~ p_T(. | person),  eps ~ N(0, I),  e = eps + W (t - W' eps)

    Any law p_T of r numbers therefore gives an exact base, which is sampled exactly. Directions and law are set in
    closed form (`training.fit_base`). Until then p_T is standard normal.

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
        self.register_buffer("directions", torch.eye(size, law.rank))

    def log_ratio(self, e: Tensor, person: Tensor | None = None) -> Tensor:
        """Return `log p(e) - log N(e; 0, I)` of `e[N, M]` given person features `[N, F]`, in nats, `[N]`."""
        with torch.autocast(e.device.type, enabled=False):
            t = self.coordinates(e)
            return self.law.log_prob(t, person) - white_log_prob(t)

    def sample(
        self,
        count: int,
        like: Tensor,
        person: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `[count, M]` for person features `[count, F]`, with the type of `like`."""
        with torch.autocast(like.device.type, enabled=False):
            eps = standard_noise((count, len(self.directions)), self.directions, generator)
            t = self.law.sample(count, person, self.directions, generator)
            return (eps + (t - eps @ self.directions) @ self.directions.T).to(like.dtype)

    def coordinates(self, e: Tensor) -> Tensor:
        """Return the coordinates t of latents, `[N, M] -> [N, r]`."""
        if e.shape[1] != len(self.directions):
            raise ShapeError(
                f"the base was built for {len(self.directions)} latents and got {e.shape[1]}; "
                "pass volumes on the model's grid, or set low_rank: 0"
            )
        return upcast(e) @ self.directions
