"""The gated mixture: it finds modes, and weights that follow the features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from dualflow.training.mixture_fit import fit_mixture


def two_modes(people: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points of two modes, a feature that raises the odds of the second, and the modes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((people, 1))
    mode = rng.random(people) < 1 / (1 + np.exp(-2 * x[:, 0]))
    z = rng.standard_normal((people, 2)) * 0.5 + np.where(mode[:, None], [2.0, 0.0], [-2.0, 0.0])
    return z, x, mode


def test_two_modes_are_found_with_their_weights():
    """Means near the modes, and weights that follow the feature."""
    z, x, mode = two_modes()
    mixture = fit_mixture(z, x, 2)
    order = np.argsort(mixture.means[:, 0])
    np.testing.assert_allclose(mixture.means[order], [[-2, 0], [2, 0]], atol=0.25)
    shares = np.exp(mixture.log_parts(z, x) - mixture.log_prob(z, x)[:, None])[:, order[1]]
    assert np.mean((shares > 0.5) == mode) > 0.98
    slope = mixture.gate[1, order[1]] - mixture.gate[1, order[0]]
    assert 1.0 < slope < 2.6


def test_one_component_is_the_gaussian_of_mean_zero():
    """Its density is that of the uncentred covariance."""
    z, x, _ = two_modes(50)
    mixture = fit_mixture(z, x, 1)
    expected = multivariate_normal(np.zeros(2), z.T @ z / 50).logpdf(z)
    np.testing.assert_allclose(mixture.log_prob(z, x), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_densities_integrate_to_one(count):
    """On a grid, for a fitted mixture of any number of components."""
    z, x, _ = two_modes(60)
    mixture = fit_mixture(z, x, count)
    axis = np.linspace(-10, 10, 201)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(mixture.log_prob(grid, np.full((len(grid), 1), 0.7)))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-3)
