"""The stress test: settings, counts and repeatability."""

import pytest
import torch

from dualflow.data.dataset import PairDataset
from dualflow.evaluation.stress import COLUMNS, stress


@pytest.fixture
def dataset(phantoms):
    """The phantoms, each with its index as side value."""
    return PairDataset([{**item, "side": torch.tensor([float(i)])} for i, item in enumerate(phantoms.items)])


class Fake:
    """Samples of value 2, or -3 under another subject's source; at temperature 1 three voxels are non-finite."""

    def __init__(self, dataset):
        self.dataset, self.seen = dataset, []

    def sample(self, source, side, n, temperature, generator):
        assert n == 1
        drawn = torch.full((1, *source.shape), 2.0)
        for row, (image, place) in enumerate(zip(source, side.flatten().int().tolist(), strict=True)):
            kind = "own" if torch.equal(image, self.dataset[place]["source"]) else "other"
            self.seen.append((temperature, kind, place))
            drawn[0, row] = 2.0 if kind == "own" else -3.0
        if temperature == 1.0:
            for place, spoilt in enumerate((float("nan"), float("inf"), -float("inf"))):
                drawn[0, :, 0, place, 0, 0] = spoilt
        return drawn


@pytest.mark.parametrize("samples", [3, 8, 101])
def test_every_sample_and_non_finite_voxel_is_counted_once(dataset, samples):
    """Samples add up to the total, balanced over settings to within one; infinities are not the largest value."""
    model = Fake(dataset)
    table = stress(model, dataset, samples, seed=0)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 8
    assert table["samples"].sum() == samples == len(model.seen)
    assert table["samples"].max() - table["samples"].min() <= 1
    hot = table["temperature"] == 1.0
    assert (table["nonfinite_voxels"] == 3 * table["samples"] * hot).all()
    drawn = table[table["samples"] > 0]
    assert (drawn["largest"] == drawn["source"].map({"own": 2.0, "other": 3.0})).all()


def test_every_scan_takes_part_in_every_setting(dataset):
    """With eight samples per scan, each is sampled under its own and under another subject's source."""
    model = Fake(dataset)
    stress(model, dataset, 8 * len(dataset), seed=0)
    settings = {(heat, kind) for heat in (0.0, 0.5, 0.8, 1.0) for kind in ("own", "other")}
    assert sorted(model.seen) == sorted((*setting, place) for setting in settings for place in range(len(dataset)))


def test_a_single_subject_has_no_other_source(dataset):
    """All samples use the subject's own source."""
    table = stress(Fake(dataset), PairDataset(dataset.items[:1]), 10, seed=0)
    assert set(table["source"]) == {"own"}
    assert table["samples"].sum() == 10


def test_a_flow_is_repeatable(flow, phantoms):
    """The seed determines the table, and a sound flow has no non-finite voxels."""
    first, again = (stress(flow, phantoms, 8, seed=1) for _ in range(2))
    assert first.equals(again)
    assert not first.equals(stress(flow, phantoms, 8, seed=2))
    assert not first["nonfinite_voxels"].any()
    assert (first["largest"] > 0).all()
