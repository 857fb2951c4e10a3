"""The stress test: settings, counts and repeatability."""

import pytest
import torch

from dualflow.data.dataset import PairDataset
from dualflow.evaluation.stress import COLUMNS, stress


@pytest.fixture
def dataset(phantoms):
    """The phantoms, each with its index as side value."""
    return PairDataset([{**item, "side": torch.tensor([float(i)])} for i, item in enumerate(phantoms.items)])


class FakeFlow(torch.nn.Module):
    """Samples of value 2, or -3 under another subject's source; at temperature 1 three voxels are non-finite."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.calls = dataset, []

    def sample(self, source, side, n, temperature, generator):
        assert n == 1
        images = torch.full((1, *source.shape), 2.0)
        for row, (image, index) in enumerate(zip(source, side.flatten().int().tolist(), strict=True)):
            kind = "own" if torch.equal(image, self.dataset[index]["source"]) else "other"
            self.calls.append((temperature, kind, index))
            images[0, row] = 2.0 if kind == "own" else -3.0
        if temperature == 1.0:
            for index, value in enumerate((float("nan"), float("inf"), -float("inf"))):
                images[0, :, 0, index, 0, 0] = value
        return images


@pytest.mark.parametrize("samples", [3, 8, 101])
def test_every_sample_and_non_finite_voxel_is_counted_once(dataset, samples):
    """Samples add up to the total, balanced over settings to within one; infinities are not the largest value."""
    model = FakeFlow(dataset)
    table = stress(model, dataset, samples, seed=0)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 8
    assert table["samples"].sum() == samples == len(model.calls)
    assert table["samples"].max() - table["samples"].min() <= 1
    hot = table["temperature"] == 1.0
    assert (table["nonfinite_voxels"] == 3 * table["samples"] * hot).all()
    used = table[table["samples"] > 0]
    assert (used["largest"] == used["source"].map({"own": 2.0, "other": 3.0})).all()


def test_every_scan_takes_part_in_every_setting(dataset):
    """With eight samples per scan, each is sampled under its own and under another subject's source."""
    model = FakeFlow(dataset)
    stress(model, dataset, 8 * len(dataset), seed=0)
    settings = {(temperature, kind) for temperature in (0.0, 0.5, 0.8, 1.0) for kind in ("own", "other")}
    assert sorted(model.calls) == sorted((*setting, index) for setting in settings for index in range(len(dataset)))


def test_a_single_subject_has_no_other_source(dataset):
    """All samples use the subject's own source."""
    table = stress(FakeFlow(dataset), PairDataset(dataset.items[:1]), 10, seed=0)
    assert set(table["source"]) == {"own"}
    assert table["samples"].sum() == 10


def test_a_flow_is_repeatable(flow, phantoms):
    """The seed determines the table, and a sound flow has no non-finite voxels."""
    first, repeated = (stress(flow, phantoms, 8, seed=1) for _ in range(2))
    assert first.equals(repeated)
    assert not first.equals(stress(flow, phantoms, 8, seed=2))
    assert not first["nonfinite_voxels"].any()
    assert (first["largest"] > 0).all()
