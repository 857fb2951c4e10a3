"""PersonFeatures: standardised side values and tissue of a person."""

from __future__ import annotations

import torch

from dualflow.flows.person_features import LIMIT, PersonFeatures, person_values, tissue_count, tissue_fractions


def people(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sources of brains whose volumes and intensities differ, and side values with unknown ones."""
    generator = torch.Generator().manual_seed(0)
    sources = torch.zeros(count, 1, 8, 8, 8)
    for index in range(count):
        sources[index, :, 1:6, 1:6, 1 : 3 + index % 5] = torch.rand(5, 5, 2 + index % 5, generator=generator)
    sides = torch.randn(count, 2, generator=generator)
    sides[::5, 0] = torch.nan
    return sources, sides


def fitted(sources: torch.Tensor, sides: torch.Tensor) -> PersonFeatures:
    """Return features that are standardised for these people."""
    person = PersonFeatures(2, 1)
    person.fit(person_values(sources, sides))
    return person


def test_fitted_features_are_standardised():
    """Over the training people a feature without extreme values has mean 0 and standard deviation 1."""
    sources, sides = people()
    values = person_values(sources, sides)
    x = fitted(sources, sides)(values)
    assert x.shape == (40, 2 + tissue_count(1))
    inside = x.abs().max(0).values < LIMIT
    assert inside.sum() >= 5
    known = values[:, inside].isfinite()
    assert not known.all()
    share = known.float().mean(0)
    torch.testing.assert_close(x[:, inside].mean(0), torch.zeros(int(inside.sum())), atol=1e-4, rtol=0)
    torch.testing.assert_close(x[:, inside].square().mean(0) / share, torch.ones(len(share)), atol=1e-4, rtol=0)


def test_an_unknown_side_value_counts_as_the_mean():
    """Also that of a rare level, and of a column that no training person has."""
    sources, _ = people()
    rare = (torch.arange(40) % 10 == 0).float()
    sides = torch.stack([rare, torch.full((40,), torch.nan)], dim=1)
    person = fitted(sources, sides)
    known, unknown = (
        person(person_values(sources, side))[:, :2] for side in (sides, torch.full_like(sides, torch.nan))
    )
    assert known[:, 0].max() > 2.9
    assert unknown.abs().max() == 0


def test_features_are_bounded():
    """A person far beyond the training people counts as their edge."""
    sources, sides = people()
    assert fitted(sources, sides)(person_values(sources, 100 * sides)).abs().max() == LIMIT


def test_a_value_that_all_people_share_stays_0():
    """It would be divided by a spread of 0."""
    sources, sides = people()
    same = torch.full_like(sides, 7.0)
    assert fitted(sources, same)(person_values(sources, same))[:, :2].abs().max() == 0


def test_tissue_fractions_by_hand():
    """Half of the brain is in the middle of the class at 0.45, half in that at 0.95; outside of it nothing counts."""
    source = torch.zeros(1, 1, 4, 4, 4)
    source[..., :2, :2], source[..., :2, 2:] = 0.45, 0.95
    values = tissue_fractions(source)[0]
    assert values.shape == (tissue_count(1),)
    torch.testing.assert_close(values[[2, 5]], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(values[-1].exp(), torch.tensor(32.0))


def test_tissue_is_exact_under_autocast():
    """Training in bfloat16 sees the values that the features were fitted to."""
    sources, _ = people(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = tissue_fractions(sources)
    assert torch.equal(values, tissue_fractions(sources))
