"""Normal equations against explicit least squares."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.normal_equations import GLOBAL_RIDGE, INTERCEPT_VARIANCE, NormalEquations, packed_index


@pytest.fixture
def sums():
    """Return the equations of 30 scans in 3 folds, 4 features and 5 sites, with the scans' features and values."""
    features, values = torch.randn(30, 4, 5), torch.randn(30, 5)
    features[:, 0] = 1
    equations = NormalEquations.zeros(3, 4, 5)
    for index in range(30):
        equations.add(features[index], values[index], torch.ones(5), index % 3)
    return equations, features, values


def test_a_solution_without_a_fold_is_ridge_regression_towards_a_prior(sums):
    """It minimises the squared error plus the ridge times the weighted distance from the prior."""
    equations, features, values = sums
    prior, variance = torch.randn(4, 5), torch.rand(4) + 0.5
    kept = torch.arange(30) % 3 != 1
    solution = equations.solve(*equations.without(1), [2.0], prior, variance)[0]
    for site in range(5):
        x, y = features[kept, :, site].double(), values[kept, site].double()
        penalty = 2.0 * variance.double().diag()
        expected = torch.linalg.solve(x.T @ x + penalty, x.T @ y + penalty @ prior[:, site].double())
        torch.testing.assert_close(solution[:, site].double(), expected, atol=1e-4, rtol=1e-4)


def test_the_error_of_a_fold_follows_from_its_sums(sums):
    """It is the squared error of the predictions."""
    equations, features, values = sums
    beta = torch.randn(4, 5)
    rows = torch.arange(30) % 3 == 2
    expected = float(((features[rows] * beta).sum(dim=1) - values[rows]).square().sum())
    assert equations.held_out_error(beta, 2) == pytest.approx(expected, rel=1e-4)
    assert equations.rmse(expected) == pytest.approx((expected / 150) ** 0.5)


def test_selected_features_give_the_equations_of_those_features(sums):
    """Selection equals accumulation of fewer features."""
    equations, features, values = sums
    fewer = NormalEquations.zeros(3, 2, 5)
    for index in range(30):
        fewer.add(features[index, [0, 3]], values[index], torch.ones(5), index % 3)
    selected = equations.select(torch.tensor([0, 3]))
    torch.testing.assert_close(selected.gram, fewer.gram)
    torch.testing.assert_close(selected.moment, fewer.moment)
    assert packed_index(3).tolist() == [[0, 1, 2], [1, 3, 4], [2, 4, 5]]


def test_the_global_fit_is_the_regression_over_all_sites(sums):
    """Its penalty hardly matters; the variances are those of the features, but the intercept's is at its floor."""
    equations, features, values = sums
    rows = features.double().movedim(1, 2).reshape(150, 4)
    coefficients, variance = equations.global_fit(*equations.without())
    torch.testing.assert_close(variance[1:], rows[:, 1:].var(dim=0, correction=0), rtol=1e-5, atol=0)
    assert variance[0] == INTERCEPT_VARIANCE
    penalty = 150 * GLOBAL_RIDGE * variance.diag()
    expected = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ values.double().flatten())
    torch.testing.assert_close(coefficients, expected, rtol=1e-5, atol=1e-6)


def test_the_precision_is_that_of_a_mean_site(sums):
    """The sums of squares averaged over the sites, plus the ridge of each feature."""
    equations, features, _ = sums
    gram, moment = equations.without()
    rows = features.double().movedim(1, 2).reshape(150, 4)
    expected = rows.T @ rows / 5 + 3.0 * equations.global_fit(gram, moment)[1].diag()
    torch.testing.assert_close(equations.precision(gram, moment, 3.0), expected, rtol=1e-5, atol=1e-5)
