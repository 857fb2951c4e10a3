"""Annealed importance sampling against integrals that are known."""

import math
from itertools import pairwise

import pytest
import torch

from dualflow.evaluation.annealing import anneal

OFFSET = 1.7
"""Logarithm of the integral of each density below."""


def log_ratio(precision, mean):
    """A Gaussian of this precision and mean times exp(OFFSET), relative to N(0, I)."""
    constant = 0.5 * torch.logdet(precision) + OFFSET

    def function(u):
        centred = u.double() - mean
        return constant - 0.5 * ((centred @ precision) * centred).sum(1) + 0.5 * u.double().square().sum(1)

    return function


def start(chains, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(chains, size, generator=generator), generator


def test_one_step_is_importance_sampling():
    """The log-weight is the log-ratio of the draw; nothing is differentiated."""
    u, generator = start(3, 2)
    with torch.no_grad():
        torch.testing.assert_close(anneal(lambda u: u.floor().sum(1), u, 1, generator), u.floor().sum(1))


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_weights_are_unbiased_for_any_number_of_steps(steps):
    """The mean of the weights is the integral, although moves are long and the density is not N(0, I)."""
    precision = torch.tensor([[1.5, 0.6, 0.0], [0.6, 2.0, -0.5], [0.0, -0.5, 1.2]], dtype=torch.float64)
    u, generator = start(40_000, 3)
    weights = anneal(log_ratio(precision, torch.tensor([0.4, -0.3, 0.2])), u, steps, generator)
    assert float(weights.exp().mean()) == pytest.approx(math.exp(OFFSET), rel=0.02)


def test_the_excess_falls_with_the_number_of_steps():
    """In 1000 dimensions plain weights are hopeless; annealing removes five sixths of their excess."""
    variance = torch.linspace(0.5, 2.0, 1000).double()
    ratio = log_ratio(torch.diag(1 / variance), 0.0)
    means = [float(anneal(ratio, *_draws(steps)).mean()) for steps in (1, 4, 16, 64)]
    excess = [OFFSET - mean for mean in means]
    assert excess[0] > 30
    assert all(later < earlier for earlier, later in pairwise(excess))
    assert excess[-1] < excess[0] / 6


@pytest.mark.parametrize("scale", [0.1, 0.01])
def test_a_narrow_density_needs_shorter_moves(scale):
    """Moves that would diverge are shortened; if all diverge, the result is plain importance sampling."""
    ratio = log_ratio(torch.eye(20).double() / scale**2, 0.0)
    plain, annealed = (anneal(ratio, *start(8, 20)[:1], steps, start(8, 20)[1]) for steps in (1, 32))
    assert annealed.isfinite().all()
    assert annealed.mean() >= plain.mean()


def _draws(steps):
    u, generator = start(8, 1000)
    return u, steps, generator
