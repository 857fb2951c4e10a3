"""PersonFeatures: standardised side values and components of the source."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.person_features import COMPONENTS, LIMIT, PersonFeatures, tissue_count, tissue_fractions


def people(count: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return side values with unknown ones, tissue fractions, and source features that vary along one pattern."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(count, 2, generator=generator)
    sides[::5, 0] = torch.nan
    pattern = torch.randn(3, 2, 2, 2, generator=generator)
    strength = torch.randn(count, 1, 1, 1, 1, generator=generator)
    tissue = torch.rand(count, tissue_count(1), generator=generator)
    return sides, tissue, strength * pattern + 0.01 * torch.randn(count, 3, 2, 2, 2, generator=generator)


def test_fitted_features_are_standardised():
    """Over the training people every feature that varies has mean 0 and standard deviation 1."""
    sides, tissue, features = people()
    person = PersonFeatures(2, 1, 24)
    person.fit(sides, tissue, features)
    x = person(sides, tissue, features)
    assert x.shape == (40, 4 + tissue_count(1) + COMPONENTS)
    varying = x.std(0, unbiased=False) > 0
    assert varying.tolist() == [True, True, True, False] + [True] * (tissue_count(1) + COMPONENTS)
    inside = varying & (x.abs().max(0).values < LIMIT)
    torch.testing.assert_close(x[:, inside].mean(0), torch.zeros(int(inside.sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, inside].std(0, unbiased=False), torch.ones(int(inside.sum())), atol=1e-5, rtol=0)
    assert x[:, varying].std(0, unbiased=False).min() > 0.9


def test_an_unknown_side_value_counts_as_the_mean():
    """Also that of a rare level, and of a column that training people all have."""
    _, tissue, features = people()
    rare = (torch.arange(40) % 10 == 0).float()
    sides = torch.stack([1 - rare, rare], dim=1)
    person = PersonFeatures(2, 1, 24)
    person.fit(sides, tissue, features)
    known, unknown, absent = (
        person(side, tissue, features)[:, :4] for side in (sides, torch.full_like(sides, torch.nan), None)
    )
    assert known[:, :2].abs().max() == pytest.approx(3, abs=0.01)
    assert torch.equal(unknown, absent)
    assert unknown[:, :2].abs().max() == 0


def test_the_first_component_is_the_source_s_pattern():
    """It correlates with the pattern's strength."""
    sides, tissue, features = people()
    person = PersonFeatures(2, 1, 24)
    person.fit(sides, tissue, features)
    strength = features.flatten(1) @ features[0].flatten()
    assert torch.corrcoef(torch.stack([person(sides, tissue, features)[:, -COMPONENTS], strength]))[0, 1].abs() > 0.99


def test_features_are_bounded_and_zero_before_the_fit():
    """A person far beyond the training people counts as their edge; an unfitted source has no effect."""
    sides, tissue, features = people()
    person = PersonFeatures(2, 1, 24)
    assert person(sides, tissue, features)[:, -COMPONENTS:].abs().max() == 0
    person.fit(sides, tissue, features)
    assert person(100 * sides, 100 * tissue, 100 * features).abs().max() == LIMIT


def test_few_people_give_fewer_components():
    """Three people have two components; the others stay 0."""
    sides, tissue, features = people(3)
    person = PersonFeatures(2, 1, 24)
    person.fit(sides, tissue, features)
    x = person(sides, tissue, features)
    assert x.isfinite().all()
    assert x[:, -2:].abs().max() == 0


def test_tissue_fractions_by_hand():
    """Half of the brain is in the middle of the class at 0.45, half in that at 0.95; outside of it nothing counts."""
    source = torch.zeros(1, 1, 4, 4, 4)
    source[..., :2, :2], source[..., :2, 2:] = 0.45, 0.95
    values = tissue_fractions(source)[0]
    assert values.shape == (tissue_count(1),)
    torch.testing.assert_close(values[[2, 5]], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(values[-1].exp(), torch.tensor(32.0))
