"""Annealed importance sampling: the normalising constant of a density known only up to some of its variables."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, sin, sqrt

import torch
from torch import Tensor

LogRatio = Callable[[Tensor], Tensor]
"""Maps `u` `[N, B]` to `log p(u) - log N(u; 0, I)`, `[N]`, for a density p that need not be normalised."""

STEP = 0.5
"""Length of a move, as an angle of the rotation that leaves N(0, I) unchanged."""
FRICTION = 0.3
"""Rate at which momentum is forgotten, per unit of length."""


def anneal(log_ratio: LogRatio, u: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Log-weights `[N]` of N chains, whose exponentials are unbiased estimates of `int p(u) du` (Neal 2001).

    A chain starts from N(0, I) and passes the distributions `N(u; 0, I) (p(u) / N(u; 0, I))^beta`, beta = 1/T .. 1:

        log w = sum_t (beta_t - beta_(t-1)) log_ratio(u_(t-1))

    By Jensen's inequality the mean of log w is a lower bound of the log-integral; it converges as T grows. One step is
    plain importance sampling. A move is one step of Hamiltonian dynamics with partially refreshed momentum (Horowitz
    1991; Sohl-Dickstein and Culpepper 2012). The Gaussian part is integrated exactly as a rotation (Beskos et al.
    2011), so acceptance does not fall with the number of variables where p is close to N(0, I).

    Args:
        log_ratio: differentiable with respect to u.
        u: draws from N(0, I), `[N, B]`; the starts.
        steps: number of distributions T, which is the number of evaluations of `log_ratio`.
        generator: source of the momenta and of the acceptances.
    """
    if steps == 1:
        return log_ratio(u)
    ratio, slope = _with_gradient(log_ratio, u)
    momentum, total = _noise(u, generator), ratio / steps
    turn, keep = (cos(STEP), sin(STEP)), exp(-FRICTION * STEP)
    for step in range(1, steps):
        beta = step / steps
        momentum = keep * momentum + sqrt(1 - keep**2) * _noise(u, generator)
        kicked = momentum + 0.5 * STEP * beta * slope
        proposal, rotated = turn[0] * u + turn[1] * kicked, turn[0] * kicked - turn[1] * u
        new_ratio, new_slope = _with_gradient(log_ratio, proposal)
        arrived = rotated + 0.5 * STEP * beta * new_slope
        gain = beta * (new_ratio - ratio) + _log_normal(proposal, arrived) - _log_normal(u, momentum)
        accept = torch.rand(len(u), generator=generator).to(u.device).log() < gain
        chosen = accept[:, None]
        u, slope = torch.where(chosen, proposal, u), torch.where(chosen, new_slope, slope)
        ratio = torch.where(accept, new_ratio, ratio)
        momentum = torch.where(chosen, arrived, -momentum)
        total = total + ratio / steps
    return total


def _with_gradient(log_ratio: LogRatio, u: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = u.detach().requires_grad_(True)
        value = log_ratio(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _log_normal(u: Tensor, momentum: Tensor) -> Tensor:
    """Log-density of position and momentum under N(0, I), up to a constant, `[N]`."""
    return -0.5 * (u.double().square() + momentum.double().square()).sum(dim=1)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    # From the CPU, so that a seed gives the same chains on every device.
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
