"""The closed-form fit of a law: shrunk variances, spread by person, and as many components as people ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dualflow.flows.subspace_law import SubspaceLaw
from dualflow.training.subspace_fit import _is_better, decreasing, fit_law, held_out_coordinates


def simulate(
    people: int, *, spread: float = 0.0, modes: float = 0.0, size: int = 20
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return coordinates with decaying variances, one person feature, and folds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(people, 1, generator=generator)
    deviations = torch.linspace(3.0, 1.2, size)
    u = torch.randn(people, size, generator=generator) * deviations * torch.exp(spread * x)
    u[:, 0] += modes * torch.where(torch.rand(people, generator=generator) < 0.5, -1.0, 1.0)
    return u.double(), x, [index % 4 for index in range(people)]


def fitted(u, x, folds, rank=12):
    """Fit a law of `rank` coordinates; return law, coordinates and facts."""
    law = SubspaceLaw(rank, 1).double()
    turn, facts = fit_law(u, x, folds, [str(index) for index in range(len(u))], law, 0)
    return law, u @ turn, facts


def test_held_out_variances_are_those_of_new_people():
    """Eigenvalues of 15 people are far too large at the head; cross-validated ones are not."""
    u, _, _ = simulate(15)
    new = torch.randn(4000, 20, generator=torch.Generator().manual_seed(1)) * torch.linspace(3.0, 1.2, 20)
    vectors = np.linalg.eigh((u.T @ u).numpy())[1][:, ::-1]
    truth = np.square(new.numpy() @ vectors).mean(axis=0)
    cross_fitted = np.square(held_out_coordinates(u.numpy(), [str(index) for index in range(len(u))])).mean(axis=0)
    naive = np.square(u.numpy() @ vectors).mean(axis=0)
    assert abs(np.log(decreasing(cross_fitted)[:3] / truth[:3])).mean() < 0.3
    assert naive[0] / truth[0] > 1.8


def test_rounding_does_not_decide_the_law_of_few_people():
    """20 people vary in 20 of 60 directions; the law of all of them hardly feels the last digits of coordinates."""
    u, x, folds = simulate(20, size=60)
    noise = 1e-6 * torch.randn(u.shape, generator=torch.Generator().manual_seed(1)).double()
    covariances = []
    for coordinates in (u, u + noise):
        law = SubspaceLaw(40, 1).double()
        turn, _ = fit_law(coordinates, x, folds, [str(index) for index in range(20)], law, 0)
        inside = torch.block_diag(law.cholesky[0] @ law.cholesky[0].T, (law.variance + law.floor).diag())
        covariances.append(torch.eye(60) - turn @ turn.T + turn @ inside @ turn.T)
    torch.testing.assert_close(covariances[1], covariances[0], atol=1e-3, rtol=0)


def test_directions_in_which_nobody_varies_are_the_first_coordinates():
    """The law holds the directions of people, then those that come first."""
    u, x, folds = simulate(8, size=30)
    u[:, 4:] = 0
    turn, _ = fit_law(u, x, folds, [str(index) for index in range(8)], SubspaceLaw(12, 1).double(), 0)
    torch.testing.assert_close(turn @ turn.T, torch.diag((torch.arange(30) < 12).double()), atol=1e-6, rtol=0)


def test_all_of_the_leading_variance_scales_with_the_person():
    """New people of the same law have the variances that it gives them."""
    u, x, folds = simulate(500, spread=0.5, size=6)
    law, t, _ = fitted(u, x, folds, rank=6)
    new, other, _ = simulate(20_000, spread=0.5, size=6)
    turn = torch.linalg.lstsq(u, t).solution
    scaled = (new @ turn)[:, : law.leading] / law.spread(other.double())[:, None]
    observed, expected = scaled.square().mean(0), (law.cholesky[0] @ law.cholesky[0].T).diagonal()
    torch.testing.assert_close(expected, observed, rtol=0.1, atol=0)


def test_scans_of_a_person_are_held_out_together():
    """Two equal scans of everyone have the coordinates that one scan has."""
    u, _, _ = simulate(15)
    people = [str(index) for index in range(len(u))]
    once, twice = held_out_coordinates(u.numpy(), people), held_out_coordinates(u.repeat(2, 1).numpy(), 2 * people)
    np.testing.assert_allclose(np.abs(twice[:15, :10]), np.abs(once[:, :10]), atol=1e-6)


def test_a_spread_that_follows_the_person_is_found():
    """Its coefficient is close to the truth, and the held-out likelihood gains."""
    law, _, facts = fitted(*simulate(240, spread=0.4))
    assert float(law.spread.weight) / 2 == pytest.approx(0.4, abs=0.12)
    assert facts["spread_gain"] > 20


def test_noise_that_does_not_scale_does_not_weaken_the_spread():
    """Coordinates of the law itself, up to two thirds of whose variance is noise, give its slope and its variances."""
    generator = torch.Generator().manual_seed(0)
    x, scaled = torch.randn(600, 1, generator=generator), torch.linspace(20.0, 0.5, 60)
    noise = torch.randn(600, 60, generator=generator)
    u = (noise * (torch.exp(0.8 * x) * scaled + 1).sqrt()).double()
    law = SubspaceLaw(60, 1).double()
    turn, _ = fit_law(u, x, [index % 4 for index in range(600)], [str(index) for index in range(600)], law, 0)
    assert float(law.spread.weight) / 2 == pytest.approx(0.4, abs=0.05)
    spread = law.spread(x.double())[:, None].square()
    observed = float((u @ turn)[:, law.leading :].square().mean())
    assert float((spread * law.variance + law.floor).mean()) == pytest.approx(observed, rel=0.05)


def test_people_of_equal_spread_are_left_equal():
    """Without a dependence the coefficient is near 0."""
    law, _, _ = fitted(*simulate(240))
    assert abs(float(law.spread.weight)) / 2 < 0.1


@pytest.mark.parametrize(("modes", "expected"), [(0.0, 1), (8.0, 2)])
def test_held_out_people_choose_the_number_of_components(modes, expected):
    """A Gaussian stays one component; two far modes become two."""
    law, t, facts = fitted(*simulate(160, modes=modes))
    assert facts["components"] == expected
    assert law.log_prob(t, torch.zeros(len(t), 1)).isfinite().all()


def test_few_people_give_one_gaussian():
    """Below the minimum number of people nothing is chosen, and the density is finite."""
    law, t, facts = fitted(*simulate(6))
    assert facts == {"people": 6, "components": 1}
    assert law.log_prob(t, torch.zeros(6, 1)).isfinite().all()


def test_scans_of_few_people_are_few_people():
    """Two scans of each of 15 people do not make 30 people."""
    u, x, folds = simulate(15)
    people = [str(index) for index in range(15)]
    facts = fit_law(u.repeat(2, 1), x.repeat(2, 1), 2 * folds, 2 * people, SubspaceLaw(12, 1).double(), 0)[1]
    assert facts == {"people": 15, "components": 1}


def test_repeated_scans_are_no_further_evidence():
    """A gain of 0.8 standard errors stays one with three equal scans of everyone: 1.4 if these were people."""
    gain = np.random.default_rng(0).standard_normal(40)
    gain += 0.8 * gain.std(ddof=1) / np.sqrt(40) - gain.mean()
    people = np.arange(40)
    assert not _is_better(gain, np.zeros(40), people)
    assert not _is_better(np.tile(gain, 3), np.zeros(120), np.tile(people, 3))
    assert _is_better(np.tile(gain, 3), np.zeros(120), np.arange(120))
