"""Base distributions: the low-rank Gaussian against the dense one."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import ShapeError
from dualflow.flows.base_distributions import LowRankGaussian, StandardNormal


def low_rank(size: int = 6, rank: int = 2) -> tuple[LowRankGaussian, torch.Tensor]:
    """Return a random low-rank Gaussian and its dense covariance."""
    torch.manual_seed(0)
    base = LowRankGaussian(size, rank).double()
    with torch.no_grad():
        base.factors.normal_()
        base.raw_log_diagonal.normal_(std=0.3)
        diagonal = base._diagonal()[0]
        return base, diagonal.square().diag() + base.factors @ base.factors.T


def test_density_equals_the_dense_normal():
    """The Woodbury identity and the determinant lemma give the density of torch's MultivariateNormal."""
    base, covariance = low_rank()
    e = torch.randn(5, 6, dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
    torch.testing.assert_close(base.log_prob(e).detach(), dense.log_prob(e), rtol=1e-10, atol=1e-10)


def test_samples_have_the_covariance():
    """Samples have mean 0 and the covariance of the density."""
    base, covariance = low_rank()
    with torch.no_grad():
        samples = base.sample(200_000, torch.zeros(6, dtype=torch.float64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.03, atol=0.03)
    assert samples.mean(0).abs().max() < 0.02


def test_standard_normal_density():
    """The standard normal equals a product of torch's Normal."""
    e = torch.randn(3, 4)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum(1)
    torch.testing.assert_close(StandardNormal().log_prob(e), expected)


def test_initialisation_recovers_true_factors():
    """Initialisation recovers the directions of two true factors, shrunk, and keeps each latent's variance."""
    torch.manual_seed(0)
    truth = torch.randn(40, 2, dtype=torch.float64)
    latents = torch.randn(500, 2, dtype=torch.float64) @ truth.T + 0.3 * torch.randn(500, 40, dtype=torch.float64)
    base = LowRankGaussian(40, 2, shrinkage=0.7).double()
    base.initialize(latents)
    factors, diagonal = base.factors.detach(), base._diagonal()[0].detach()
    projection = torch.linalg.lstsq(truth, factors).solution
    assert (truth @ projection - factors).norm() < 0.05 * factors.norm()
    torch.testing.assert_close(factors.square().sum(), 0.7 * truth.square().sum(), rtol=0.15, atol=0)
    variance = diagonal.square() + factors.square().sum(1)
    torch.testing.assert_close(variance, latents.square().mean(0), rtol=0.05, atol=0)


def test_initialisation_with_fewer_latents_than_factors():
    """Three latents set three factors; the other factors stay small and nonzero, and the density is finite."""
    torch.manual_seed(0)
    base, latents = LowRankGaussian(10, 5), torch.randn(3, 10)
    base.initialize(latents)
    assert base.log_prob(latents).isfinite().all()
    assert 0 < base.factors[:, 3:].abs().max() < 0.01


def test_wrong_size_is_refused():
    """The error for a latent of another size names both sizes."""
    with pytest.raises(ShapeError, match="6 latents and got 7"):
        low_rank()[0].log_prob(torch.zeros(1, 7))
