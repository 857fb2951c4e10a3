"""Base distributions: the subspace base against a dense Gaussian, and its exact sampling."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import ShapeError
from dualflow.flows.base_distributions import SubspaceBase, white_log_prob
from dualflow.flows.subspace_law import SubspaceLaw


def gaussian_base(size: int = 8, rank: int = 5) -> tuple[SubspaceBase, torch.Tensor]:
    """Return a base whose law is one Gaussian, with random directions, and its dense covariance."""
    torch.manual_seed(0)
    base = SubspaceBase(size, SubspaceLaw(rank, 0)).double()
    law, leading = base.law, base.law.leading
    base.directions.copy_(torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64))[0])
    law.cholesky[0] += 0.3 * torch.randn(leading, leading, dtype=torch.float64).tril(-1)
    law.variance.copy_(torch.rand(rank - leading) + 0.5)
    law.floor.fill_(0.2)
    law.gain.fill_(1.3)
    inner = torch.block_diag(1.69 * law.cholesky[0] @ law.cholesky[0].T, (1.69 * law.variance + law.floor).diag())
    w = base.directions
    return base, torch.eye(size, dtype=torch.float64) - w @ w.T + w @ inner @ w.T


def test_density_equals_the_dense_normal():
    """With a Gaussian law the density is that of torch's MultivariateNormal."""
    base, covariance = gaussian_base()
    e = torch.randn(5, 8, dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(torch.zeros(8, dtype=torch.float64), covariance)
    density = white_log_prob(e) + base.log_ratio(e)
    torch.testing.assert_close(density, dense.log_prob(e), rtol=1e-10, atol=1e-10)


def test_samples_have_the_covariance():
    """Samples have mean 0 and the covariance of the density."""
    base, covariance = gaussian_base()
    with torch.no_grad():
        like = torch.zeros(8, dtype=torch.float64)
        samples = base.sample(200_000, like, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.03, atol=0.03)
    assert samples.mean(0).abs().max() < 0.02


def test_a_new_base_is_white_noise():
    """Before a fit the directions change nothing."""
    base = SubspaceBase(6, SubspaceLaw(5, 2))
    e, person = torch.randn(3, 6), torch.randn(3, 2)
    torch.testing.assert_close(base.log_ratio(e, person), torch.zeros(3))


def test_the_density_of_white_noise():
    """It equals a product of torch's Normal over all axes but the first."""
    e = torch.randn(3, 4, 2)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum((1, 2))
    torch.testing.assert_close(white_log_prob(e), expected)


def test_wrong_sizes_are_refused():
    """The errors for a latent of another size, and for too many directions, name both sizes."""
    with pytest.raises(ShapeError, match="8 latents and got 7"):
        gaussian_base()[0].log_ratio(torch.zeros(1, 7))
    with pytest.raises(ShapeError, match="9 directions for 8 latents"):
        SubspaceBase(8, SubspaceLaw(9, 0))
