"""The posterior of the coefficients: its draws follow the stated law, and its scale is that of refits."""

from __future__ import annotations

import math

import pytest
import torch
from regression_scans import SHAPE, SIDE, make_scans

from dualflow.flows.coefficient_posterior import CoefficientPosterior
from dualflow.flows.local_linear_fit import RungTable
from dualflow.flows.stacked_fit import fit_stacked_mean
from dualflow.flows.stacked_mean import StackedMean

GRID = (9, 10, 11)


def test_draws_have_the_stated_covariance():
    """Covariance of coefficients within a voxel, and correlation between voxels."""
    posterior = CoefficientPosterior(GRID, 2)
    posterior.factor.copy_(torch.tensor([[1.0, 0.0], [0.5, 2.0]]))
    posterior.spread.copy_(torch.linspace(0.5, 1.5, GRID[0])[:, None, None].expand(GRID))
    posterior.width.fill_(1.2)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([posterior.draw(generator) for _ in range(2000)])
    covariance = torch.cov(draws[:, :, 4, 5, 5].T)
    expected = posterior.factor @ posterior.factor.T * posterior.spread[4, 5, 5] ** 2
    assert torch.allclose(covariance, expected, atol=0.12 * float(expected.max()))
    neighbours = torch.corrcoef(torch.stack([draws[:, 0, 4, 4, 5], draws[:, 0, 4, 6, 5]]))[0, 1]
    assert float(neighbours) == pytest.approx(math.exp(-(2**2) / (4 * 1.2**2)), abs=0.08)


def test_scale_and_width_are_those_of_the_jackknife():
    """Fits without one fold, drawn from a known law, give that law back."""
    truth = CoefficientPosterior(GRID, 2)
    truth.factor.copy_(0.1 * torch.eye(2))
    truth.spread.fill_(1.0)
    truth.width.fill_(1.0)
    mask = torch.ones(GRID, dtype=torch.bool)
    count = 12
    # K independent fits of variance v have a jackknife variance of v (K - 1)^2 / K.
    folds = torch.stack([truth.draw().flatten(1) for _ in range(count)]) * count**0.5 / (count - 1)
    posterior = CoefficientPosterior(GRID, 2)
    features = [torch.ones(2, mask.numel()) for _ in range(4)]
    posterior.fit(torch.eye(2), torch.ones(GRID), features, folds, mask)
    assert float(posterior.factor[0, 0]) == pytest.approx(0.1, rel=0.1)
    assert float(posterior.width) == pytest.approx(1.0, rel=0.1)


def test_the_spread_of_posterior_means_is_that_of_new_studies():
    """The posterior standard deviation is within a factor of two of the spread of fits to other people."""
    source, side = make_scans(1, seed=99)[0].source[None], torch.zeros(1, SIDE)
    options = {"ridges": (3.0,), "sigmas": (1.1,), "ladder": (RungTable((1.1,), (10.0,)),)}
    fits = [
        fit_stacked_mean(make_scans(16, seed=seed, noise=0.3), StackedMean(SHAPE, SIDE), **options)[0]
        for seed in range(5)
    ]
    between = torch.stack([model(source, side) for model in fits]).std(dim=0)
    draws = fits[0].posterior_means(source, side, 40, torch.Generator().manual_seed(1))
    assert draws.shape == (40, 1, 1, *SHAPE)
    inside = make_scans(1)[0].mask
    ratio = float(draws.std(dim=0)[0][inside].square().mean().sqrt() / between[0][inside].square().mean().sqrt())
    assert 0.5 < ratio < 2
    assert torch.allclose(draws.mean(dim=0)[0][inside], fits[0](source, side)[0][inside], atol=0.3)


def test_people_share_the_coefficients_of_a_draw():
    """A person's draw does not depend on the batch, and equal generator states give equal draws."""
    model, _, _ = fit_stacked_mean(make_scans(9), StackedMean(SHAPE, SIDE))
    sources = torch.stack([scan.source for scan in make_scans(3, seed=5)])
    together = model.posterior_means(sources, None, 2, torch.Generator().manual_seed(3))
    alone = model.posterior_means(sources[1:2], None, 2, torch.Generator().manual_seed(3))
    torch.testing.assert_close(together[:, 1:2], alone)
    assert not torch.equal(together[0], together[1])
