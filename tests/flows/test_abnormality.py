"""Abnormality maps."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.abnormality import (
    NO_ABNORMALITY,
    THRESHOLDS,
    Abnormality,
    abnormality_rows,
    hemispheric_load,
    surroundings,
)

SHAPE = (12, 12, 12)
INSIDE = torch.ones(SHAPE, dtype=torch.bool)
ROWS = {row.name: row for row in abnormality_rows(1)}


def person(seed: int, lesion: float = 0.0) -> torch.Tensor:
    """Return a noisy source at .6, with a lesion of this depth in the left half."""
    source = 0.6 + 0.02 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    source[:, 2:5, 4:7, 4:7] += lesion
    return source


def fitted(sources: list[torch.Tensor]) -> Abnormality:
    """Return the reference of people."""
    abnormality = Abnormality(SHAPE, 1)
    abnormality.fit([(source, INSIDE) for source in sources])
    return abnormality


@pytest.mark.parametrize(("depth", "name"), [(-0.3, "dark"), (0.3, "bright"), (0.3, "both"), (-0.3, "both")])
def test_a_lesion_is_found_by_its_sign(depth, name):
    """The selected sign marks the lesion alone; the other sign does not mark it."""
    abnormality = fitted([person(seed) for seed in range(12)])
    abnormality.choose(ROWS[f"{name} in channel 0 from 3 sd"])
    abnormal = abnormality(person(30, depth), INSIDE)
    assert abnormal[3, 5, 5] == 1
    assert abnormal[7:].sum() < 1
    assert (abnormality(person(30, -depth), INSIDE)[3, 5, 5] == 1) == (name == "both")
    abnormality.choose(NO_ABNORMALITY)
    assert not abnormality(person(30, depth), INSIDE).any()


def test_a_training_person_is_compared_with_the_others():
    """The reference without a person equals one that never had the person."""
    people = [person(seed, -0.3 * (seed == 0)) for seed in range(8)]
    with_person, without = fitted(people), fitted(people[1:])
    expected = without.deviation(people[0], INSIDE)
    torch.testing.assert_close(
        with_person.without([(people[0], INSIDE)]).deviation(people[0], INSIDE), expected, atol=1e-3, rtol=1e-3
    )
    assert with_person.deviation(people[0], INSIDE)[0, 3, 5, 5].abs() < 0.6 * expected[0, 3, 5, 5].abs()


def test_voxels_in_few_masks_are_not_abnormal():
    """Where few training people have brain there is no reference."""
    masks = [INSIDE.clone() for _ in range(10)]
    for mask in masks[1:]:
        mask[2:5] = False
    abnormality = Abnormality(SHAPE, 1)
    abnormality.fit(zip([person(seed) for seed in range(10)], masks, strict=True))
    assert not abnormality.deviation(person(30, -0.3), INSIDE)[:, 2:5].any()


def test_the_typical_load_is_the_mean_of_the_hemispheres():
    """It is in voxels, and at least one."""
    abnormality = fitted([person(seed) for seed in range(8)])
    deviation = torch.zeros(1, *SHAPE)
    deviation[:, :2, :3, :4] = 9.0
    row = ROWS[f"bright in channel 0 from {THRESHOLDS[0]:g} sd"]
    assert abnormality.choose(row, [deviation, torch.zeros_like(deviation)]) == pytest.approx(6.0)
    assert abnormality.choose(row, [torch.zeros_like(deviation)]) == 1.0


def test_loads_of_the_hemispheres_mirror():
    """A lesion loads its own side, and the opposite side from there; a reflection swaps the sides."""
    abnormal = torch.zeros(SHAPE)
    abnormal[1, 3:5, 3] = 1
    same, opposite = hemispheric_load(abnormal)
    assert same.flatten().tolist() == [2.0] * 6 + [0.0] * 6
    assert torch.equal(opposite, same.flip(0))
    assert torch.equal(hemispheric_load(abnormal.flip(0))[0], same.flip(0))


def test_surroundings_saturate():
    """They lie in 0..1 and fall with the distance from the lesion."""
    abnormal = torch.zeros(SHAPE)
    abnormal[2:6, 4:8, 4:8] = 1
    around = surroundings(abnormal)
    assert 0 <= around.min() < 0.1 < around[7, 5, 5] < around[4, 5, 5] < 1


def test_candidates_cover_every_channel_and_sign():
    """One channel has dark, bright and both; several channels also have both in all."""
    assert len(abnormality_rows(1)) == 3 * len(THRESHOLDS)
    rows = abnormality_rows(2)
    assert len(rows) == len({row.name for row in rows}) == 7 * len(THRESHOLDS)
    assert all(torch.tensor(row.selected).shape == (2, 2) for row in rows)
