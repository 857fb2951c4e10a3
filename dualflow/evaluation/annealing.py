"""Annealed importance sampling: the integral of a density that is known only pointwise."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, sin, sqrt

import torch
from torch import Tensor

from dualflow.flows.rng import standard_noise

LogRatio = Callable[[Tensor], Tensor]
"""Maps u `[N, B]` to `log p(u) - log N(u; 0, I)`, `[N]`, for a density p that need not be normalised."""

LENGTHS = (0.5, 0.25, 0.12, 0.06)
"""Candidate lengths of a move, as angles of the rotation that leaves N(0, I) unchanged."""
FRICTION = 0.3
"""Rate at which momentum is forgotten, per unit of length."""


def anneal(log_ratio: LogRatio, u: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Log-weights `[N]` of N chains, whose exponentials are unbiased estimates of `int p(u) du`.

    A chain starts from N(0, I) and follows the densities `N(u; 0, I)^(1 - beta) p(u)^beta`, beta = 1/T .. 1, by
    Hamiltonian dynamics with partially refreshed momentum. Its log-weight is the work done on it:

        log w = sum_t 1/T log_ratio(u_(t-1)) - (change of energy in move t)

    A move has no acceptance step; the change of energy corrects for its error exactly (Geffner and Domke 2021). The
    Gaussian part of the dynamics is integrated exactly, as a rotation. By Jensen's inequality the mean of log w is a
    lower bound of the log-integral, and it converges as T grows. One step is plain importance sampling.

    A move that is too long for the curvature of p diverges. Shorter ones are therefore tried as long as the chains end
    with less than plain importance sampling, which is the result if all of them do. This choice looks at the weights,
    so their exponentials are exactly unbiased only for a given length.

    Args:
        log_ratio: differentiable with respect to u.
        u: draws from N(0, I), `[N, B]`; the starts.
        steps: number of densities T. `log_ratio` is evaluated T times, and T - 1 times more for each move that was too
            long.
        generator: source of the momenta.
    """
    if steps == 1:
        return log_ratio(u)
    plain = _with_gradient(log_ratio, u)
    for length in LENGTHS:
        work = _work(log_ratio, u, plain, steps, length, generator)
        if work.mean() >= plain[0].mean():  # not if it is NaN
            return work
    return plain[0]


def _work(
    log_ratio: LogRatio, u: Tensor, start: tuple[Tensor, Tensor], steps: int, length: float, generator: torch.Generator
) -> Tensor:
    """Log-weights of chains with moves of one length, from u with its log-ratio and gradient."""
    keep, turn, rise = exp(-FRICTION * length), cos(length), sin(length)
    ratio, slope = start
    momentum, work = standard_noise(tuple(u.shape), u, generator), ratio / steps
    for beta in (step / steps for step in range(1, steps)):
        momentum = keep * momentum + sqrt(1 - keep**2) * standard_noise(tuple(u.shape), u, generator)
        before = _energy(u, momentum) - beta * ratio
        momentum = momentum + 0.5 * length * beta * slope
        u, momentum = turn * u + rise * momentum, turn * momentum - rise * u
        ratio, slope = _with_gradient(log_ratio, u)
        momentum = momentum + 0.5 * length * beta * slope
        work = work + ratio / steps - (_energy(u, momentum) - beta * ratio - before)
    return work


def _with_gradient(log_ratio: LogRatio, u: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = u.detach().requires_grad_(True)
        value = log_ratio(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _energy(u: Tensor, momentum: Tensor) -> Tensor:
    """Energy of position and momentum under N(0, I), `[N]`."""
    return 0.5 * (u.double().square() + momentum.double().square()).sum(dim=1)
