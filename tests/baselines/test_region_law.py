"""The law of region means: Gaussian, and mixtures whose weights follow side information."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import LedoitWolf

from dualflow.baselines.region_law import RegionLaw


def subtypes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return errors of six regions, whether a person is a patient, and folds; patients are of one of two subtypes."""
    generator = torch.Generator().manual_seed(seed)
    patient = (torch.rand(count, 1, generator=generator) < 0.5).float()
    sign = 2.0 * (torch.rand(count, 1, generator=generator) < 0.5) - 1
    pattern = torch.tensor([1.0, 1, 1, -1, -1, -1])
    errors = 0.4 * torch.randn(count, 6, generator=generator) + patient * sign * pattern
    return errors, patient, [index % 4 for index in range(count)]


def test_one_component_is_the_ledoit_wolf_gaussian():
    """Density and samples are those of a Gaussian with the Ledoit-Wolf covariance of the errors."""
    errors, patient, folds = subtypes(60)
    law = RegionLaw(6, 1)
    law.fit(errors, patient, folds)
    covariance = torch.from_numpy(LedoitWolf(assume_centered=True).fit(errors.numpy()).covariance_).float()
    assert torch.allclose(law.covariance(), covariance, atol=1e-5)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(6), covariance)
    assert torch.allclose(law.log_prob(errors, patient).float(), gaussian.log_prob(errors), atol=1e-3)
    draws = law.draw(20_000, patient[0], torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cov(draws.T), covariance, atol=0.03)


def test_the_mixture_finds_subtypes_of_patients():
    """Held-out likelihood asks for more than one component; only patients have two modes, and the mean stays 0."""
    law, gaussian = RegionLaw(6, 1, components=3), RegionLaw(6, 1)
    for fitted in (law, gaussian):
        fitted.fit(*subtypes(160))
    errors, patient, _ = subtypes(200, seed=1)
    assert (law.log_prob(errors, patient) - gaussian.log_prob(errors, patient)).mean() > 0.3
    contrasts = {}
    for name, value in (("control", 0.0), ("patient", 1.0)):
        draws = law.draw(4000, torch.tensor([value]), torch.Generator().manual_seed(0))
        assert draws.mean(dim=0).abs().max() < 0.08
        contrasts[name] = draws[:, :3].mean(dim=1) - draws[:, 3:].mean(dim=1)
    assert contrasts["control"].std() < 0.5 < contrasts["patient"].std()
    middle = (contrasts["patient"].abs() < 0.5).float().mean()
    modes = ((contrasts["patient"].abs() - 2).abs() < 0.5).float().mean()
    assert middle < 0.1 < 0.5 < modes


def test_gaussian_errors_keep_one_component():
    """Without modes, held-out likelihood chooses one component, whose weight is 1."""
    generator = torch.Generator().manual_seed(0)
    law = RegionLaw(6, 1, components=2)
    law.fit(torch.randn(80, 6, generator=generator), torch.zeros(80, 1), [index % 4 for index in range(80)])
    assert law.gate[1:, 0].max() < -1000


def test_a_fold_with_nearly_all_scans_leaves_one_component():
    """Two people, one with 19 sessions: without that person there is one scan, too few for a mixture."""
    errors, patient, _ = subtypes(20)
    law = RegionLaw(6, 1, components=3)
    law.fit(errors, patient, [0] * 19 + [1])
    assert law.mixture(patient[0])[0].exp().tolist() == [1, 0, 0]


def test_the_density_integrates_to_one():
    """The mean of p / q over draws from a wider Gaussian q is 1."""
    law = RegionLaw(2, 1, components=2)
    errors, patient, folds = subtypes(80)
    law.fit(errors[:, [0, 5]], patient, folds)
    wide = torch.distributions.MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))
    points = wide.sample((20_000,))
    ratio = (law.log_prob(points, torch.ones(len(points), 1)) - wide.log_prob(points)).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.05)


def test_visits_of_a_person_are_no_more_people():
    """Equal visits leave the law as it is. Of different ones, one of each person tells how far the law is shrunk."""
    errors, patient, folds = subtypes(25)
    once, twice, uneven = (RegionLaw(6, 1, components=3) for _ in range(3))
    once.fit(errors, patient, folds)
    visits = torch.tensor([person for person in range(25) for _ in range(1 + person % 3)])
    people = [f"P{person}" for person in range(25)]
    twice.fit(errors.repeat(2, 1), patient.repeat(2, 1), folds * 2, people * 2)
    uneven.fit(errors[visits], patient[visits], [folds[i] for i in visits], [people[i] for i in visits])
    for law in (twice, uneven):
        torch.testing.assert_close(law.covariance(), once.covariance(), rtol=1e-4, atol=1e-5)
        assert (law.gate[:, 0] > -1000).sum() <= 2  # as many components as 25 people allow
    alone = RegionLaw(6, 1)
    alone.fit(errors[visits], patient[visits], [folds[i] for i in visits])
    assert not torch.allclose(alone.covariance(), once.covariance(), rtol=1e-2)
