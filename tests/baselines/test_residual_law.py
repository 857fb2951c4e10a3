"""The joint law of a mean's errors: voxels, regions and people."""

from __future__ import annotations

import pytest
import torch
from region_cohort import SHAPE, region_labels, region_people

from dualflow.baselines import region_law, residual_law
from dualflow.baselines.residual_law import ResidualLaw
from dualflow.baselines.residual_likelihood import log_density
from dualflow.baselines.residuals import ResidualScans
from dualflow.errors import DataError, ShapeError

LABELS = region_labels()
INSIDE = LABELS > 0


def fitted(count: int = 60, labels: torch.Tensor = LABELS, **options) -> tuple[ResidualLaw, list[torch.Tensor]]:
    """Return a law fitted to errors of the true mean, and these errors."""
    people = region_people(count)
    images = [(1 + person["source"]) * person["mask"] for person in people]
    law = ResidualLaw(SHAPE, 2, regions=4, **options)
    law.set_regions(labels)
    law.fit(ResidualScans(people, images, [index % 4 for index in range(count)]))
    return law, [person["target"][0] - image[0] for person, image in zip(people, images, strict=True)]


def draws(law: ResidualLaw, age: float = 0.0, patient: float = 1.0, count: int = 1500) -> torch.Tensor:
    """Return errors `[count, D, H, W]` of one person."""
    source = 0.5 * INSIDE[None, None].float()
    return law.sample(source, torch.tensor([[age, patient]]), count, torch.Generator().manual_seed(0))[:, 0, 0]


def test_voxels_have_the_spread_map_and_regions_their_covariance():
    """Samples have the root mean squared error of the people in every voxel, and their covariance of region means."""
    law, errors = fitted()
    samples = draws(law)
    ratio = (samples.std(dim=0) / law.spread)[INSIDE]
    assert ratio.min() > 0.9
    assert ratio.max() < 1.1
    rms = torch.stack(errors).square().mean(dim=0).sqrt()[INSIDE]
    assert float((law.spread[INSIDE] / rms).mean()) == pytest.approx(1.0, abs=0.1)
    means = law.region_means(torch.stack(errors))
    expected, measured = means.T @ means / len(means), torch.cov(law.region_means(samples).T)
    assert torch.allclose(measured, expected, atol=0.15 * float(expected.max()))


@pytest.mark.parametrize("person_scale", [False, True])
def test_a_region_that_some_targets_do_not_show_varies_as_in_the_others(person_scale):
    """Nothing was measured there: its mean is no error of 0, neither of the region nor of the person."""

    def deviations(cut):
        people = region_people(60)
        images = [(1 + person["source"]) * person["mask"] for person in people]
        people = [cut(index, person) for index, person in enumerate(people)]
        law = ResidualLaw(SHAPE, 2, regions=4, person_scale=person_scale)
        law.set_regions(LABELS)
        law.fit(ResidualScans(people, images, [index % 4 for index in range(60)]))
        samples = draws(law)
        return law.region_deviation, law.region_means(samples).std(dim=0)

    def without_the_first(index, person):
        return {**person, "shown": person["mask"] & (LABELS != 1)} if index % 3 == 0 else person

    for whole, cut in zip(deviations(lambda _, person: person), deviations(without_the_first), strict=True):
        torch.testing.assert_close(cut, whole, rtol=0.1, atol=0)


def test_neighbouring_voxels_are_correlated_within_a_region():
    """Around the region mean, the correlation of neighbours is that of the errors."""
    law, errors = fitted()
    correlations = []
    for fields in (draws(law), torch.stack(errors)):
        around = fields - torch.cat([torch.zeros(len(fields), 1), law.region_means(fields)], dim=1)[:, LABELS.long()]
        near, far = around[:, 2, 2:-3, 2:-2], around[:, 2, 3:-2, 2:-2]
        correlations.append(float((near * far).mean() / (near.square().mean() * far.square().mean()).sqrt()))
    assert correlations[0] == pytest.approx(correlations[1], abs=0.1)
    assert correlations[0] > 0.2


def test_the_scale_follows_the_person():
    """Old people have the larger errors, in voxels and regions; without the option all have the same."""
    law, plain = fitted(person_scale=True)[0], fitted()[0]
    young, old = (draws(law, age, count=400) for age in (-1.0, 1.0))
    for values in (lambda x: x[:, INSIDE], law.region_means):
        assert float(values(old).std() / values(young).std()) == pytest.approx(torch.e, rel=0.35)
    assert torch.equal(draws(plain, -1.0, count=2), draws(plain, 1.0, count=2))


def test_a_mixture_gives_patients_two_modes(monkeypatch):
    """The contrast between the outer regions of a patient is seldom near 0, and that of a control often is."""
    monkeypatch.setattr(region_law, "STARTS", 1)
    law, _ = fitted(100, person_scale=True, components=3)
    near = {}
    for patient in (0.0, 1.0):
        means = law.region_means(draws(law, patient=patient, count=600))
        near[patient] = float(((means[:, 0] - means[:, 3]).abs() < 0.2).float().mean())
    assert near[1.0] < 0.3 < 0.7 < near[0.0]


def test_the_whole_brain_is_the_only_region_without_labels():
    """A law without `set_regions` has the spread of the people's means over the brain."""
    people = region_people(20)
    images = [(1 + person["source"]) * person["mask"] for person in people]
    law = ResidualLaw(SHAPE, 2)
    law.fit(ResidualScans(people, images, [index % 2 for index in range(20)]))
    means = torch.stack([(p["target"] - image)[p["mask"]].mean() for p, image in zip(people, images, strict=True)])
    assert float(draws(law)[:, INSIDE].mean(dim=1).std()) == pytest.approx(float(means.square().mean().sqrt()), rel=0.1)


def test_wrong_regions_and_empty_data_are_refused():
    """Labels of another grid, too many labels, and no pairs raise errors."""
    law = ResidualLaw(SHAPE, 2, regions=3)
    with pytest.raises(ShapeError, match="at most 3 regions"):
        law.set_regions(LABELS)
    with pytest.raises(ShapeError, match="labels"):
        law.set_regions(torch.zeros(8, 8, 8, dtype=torch.int32))
    with pytest.raises(DataError, match="training"):
        law.fit([])


def test_no_voxel_beside_a_small_region_is_certain(monkeypatch):
    """A region of eight voxels in a large one explains its voxels too well: errors of new people were surprising."""
    labels = LABELS.clone()
    labels[labels == 4] = 3
    labels[2:4, 3:5, 3:5] = 4

    def nats(least: float) -> float:
        monkeypatch.setattr(residual_law, "LEAST_DEVIATION", least)
        law, _ = fitted(labels=labels)
        new = region_people(10, seed=1)
        errors = [person["target"][0] - 1 - person["source"][0] for person in new]
        parts = [
            log_density(law, error, person["mask"][0], person["source"][None], person["side"][None])
            for error, person in zip(errors, new, strict=True)
        ]
        return sum(parts) / len(parts)

    assert nats(residual_law.LEAST_DEVIATION) > nats(0.0) + 30
