"""Correlated random fields on a grid."""

from __future__ import annotations

import pytest
import torch

from dualflow.baselines.grid_kernel import LENGTHS, GridKernel

SHAPE = (10, 8, 12)


def kernel(*weights: float) -> GridKernel:
    """Return a kernel with these weights."""
    result = GridKernel(SHAPE)
    result.weights.copy_(torch.tensor(weights))
    return result


def test_draws_have_the_correlation_that_is_applied():
    """Sample covariances with a voxel equal the row of the correlation matrix, and every variance is 1."""
    field = kernel(0.3, 0.5, 0.2, 0.0)
    draws = field.draw(4000, torch.Generator().manual_seed(0))
    unit = torch.zeros(SHAPE)
    unit[0, 4, 6] = 1
    expected = field.apply(unit)
    measured = (draws * draws[:, :1, 4:5, 6:7]).mean(dim=0)
    assert expected[0, 4, 6] == pytest.approx(1.0, abs=1e-5)
    assert expected[1, 4, 6] > 0.4
    assert torch.allclose(measured, expected, atol=0.08)
    assert torch.allclose(draws.square().mean(dim=0), torch.ones(SHAPE), atol=0.12)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0, 0.0), (0.3, 0.7, 0.0, 0.0), (0.2, 0.3, 0.0, 0.5)])
def test_the_fit_recovers_the_correlation(weights):
    """Fields drawn from a kernel give its correlation back, whatever the mask."""
    true, fitted = kernel(*weights), GridKernel(SHAPE)
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.8
    fitted.fit((field, mask) for field in true.draw(300, torch.Generator().manual_seed(0)))
    lag = torch.arange(6.0)
    curves = [
        (lag == 0) * model.weights[0]
        + sum(w * (-0.5 * (lag / length) ** 2).exp() for w, length in zip(model.weights[1:], LENGTHS, strict=True))
        for model in (true, fitted)
    ]
    assert torch.allclose(curves[0], curves[1], atol=0.05)
    assert fitted.weights.sum() == pytest.approx(1.0)
