"""The stress test counts exactly."""

import pytest
import torch

from dualflow.data.dataset import PairDataset
from dualflow.evaluation.stress import COLUMNS, stress


@pytest.fixture
def people(phantoms):
    """The phantoms, each with its own place as side value."""
    return PairDataset([{**item, "side": torch.tensor([float(i)])} for i, item in enumerate(phantoms.items)])


class Fake:
    """Samples of value 2, of -3 for another's source; three values of every sample at temperature 1 are spoilt."""

    def __init__(self, people):
        self.people, self.seen = people, []

    def sample(self, source, side, n, temperature, generator):
        assert n == 1
        drawn = torch.full((1, *source.shape), 2.0)
        for row, (image, place) in enumerate(zip(source, side.flatten().int().tolist(), strict=True)):
            kind = "own" if torch.equal(image, self.people[place]["source"]) else "other"
            self.seen.append((temperature, kind, place))
            drawn[0, row] = 2.0 if kind == "own" else -3.0
        if temperature == 1.0:
            for place, spoilt in enumerate((float("nan"), float("inf"), -float("inf"))):
                drawn[0, :, 0, place, 0, 0] = spoilt
        return drawn


@pytest.mark.parametrize("samples", [3, 8, 101])
def test_every_sample_and_every_bad_value_is_counted_once(people, samples):
    """Samples add up to what was asked, over settings within one of each other; infinities do not count as largest."""
    model = Fake(people)
    table = stress(model, people, samples, seed=0)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 8
    assert table["samples"].sum() == samples == len(model.seen)
    assert table["samples"].max() - table["samples"].min() <= 1
    hot = table["temperature"] == 1.0
    assert (table["nonfinite_voxels"] == 3 * table["samples"] * hot).all()
    drawn = table[table["samples"] > 0]
    assert (drawn["largest"] == drawn["source"].map({"own": 2.0, "other": 3.0})).all()


def test_every_person_takes_part_at_every_setting(people):
    """With eight samples per person all are drawn for, with their own source and with another's."""
    model = Fake(people)
    stress(model, people, 8 * len(people), seed=0)
    settings = {(heat, kind) for heat in (0.0, 0.5, 0.8, 1.0) for kind in ("own", "other")}
    assert sorted(model.seen) == sorted((*setting, place) for setting in settings for place in range(len(people)))


def test_a_lone_person_has_no_other(people):
    """All samples are of their own source."""
    table = stress(Fake(people), PairDataset(people.items[:1]), 10, seed=0)
    assert set(table["source"]) == {"own"}
    assert table["samples"].sum() == 10


def test_a_flow_is_repeatable(flow, phantoms):
    """The seed decides the table, and a sound flow has no bad values."""
    first, again = (stress(flow, phantoms, 8, seed=1) for _ in range(2))
    assert first.equals(again)
    assert not first.equals(stress(flow, phantoms, 8, seed=2))
    assert not first["nonfinite_voxels"].any()
    assert (first["largest"] > 0).all()
