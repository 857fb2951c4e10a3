"""Calibration of a flow that is trained on six tiny phantoms."""

import math
from types import SimpleNamespace

import pytest
import torch

from dualflow.data.dataset import PairDataset
from dualflow.training.calibrate import (
    Moments,
    _best_region_gain,
    _fit_region_gain,
    calibrate,
    one_scan_each,
    sampled_moments,
    shrunk,
    warn_if_uncertain,
)
from dualflow.training.fit_base import region_weights


def of_many(pairs):
    """The pairs as those of twelve times as many people, whose errors are then no chance."""
    return PairDataset(
        [{**item, "scan": f"sub-{i}x{copy}"} for i, item in enumerate(pairs.items) for copy in range(12)]
    )


def test_calibration_undoes_a_rescaled_spread_map(train, small_default, held_out, monkeypatch):
    """The voxel gain does not depend on the map's scale before."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 2)
    monkeypatch.setattr("dualflow.training.calibrate.MAX_PEOPLE", 12)
    monkeypatch.setattr("dualflow.training.calibrate.LOG_BOUND", 2.0)  # six scans and six steps need a large gain
    flow, people = train(small_default).model, of_many(held_out)
    calibrate(flow, people, PairDataset([]), None, 2)
    before = flow.spread.image.clone()
    for factor in (0.5, 1.5):
        flow.spread.rescale(factor)
        facts = calibrate(flow, people, PairDataset([]), None, 2)
        torch.testing.assert_close(flow.spread.image, before, rtol=0.05, atol=0)
        assert facts["voxel_gain"] * factor == pytest.approx(1, rel=0.05)
        assert facts["nats_after"] < facts["nats_before"]


def test_calibration_costs_hardly_any_likelihood(train, small_default, monkeypatch):
    """The trained flow's validation NLL does not rise, and the record has both numbers."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 2)
    record = train(small_default).record
    assert record.calibration["nats_after"] <= record.calibration["nats_before"] + 0.01
    assert set(record.calibration) == {"cross_fitted", "voxel_gain", "region_gain", "nats_before", "nats_after"}


def test_after_calibration_voxels_and_region_means_vary_as_much_as_they_err(
    train, small_default, held_out, monkeypatch
):
    """Squared errors of voxels are their variances; region means are less likely under a narrower and a wider law."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 2)
    monkeypatch.setattr("dualflow.training.calibrate.LOG_BOUND", 2.0)  # six scans and six steps need a large gain
    flow = train(small_default).model
    pairs = PairDataset(
        [
            # Errors that only whole regions have.
            {**item, "target": item["target"] + shift * item["mask"]}
            for item in held_out.items
            for shift in (0.08, -0.08)
        ]
    )
    flow.base.law.gain.fill_(0.7)
    calibrate(flow, of_many(pairs), PairDataset([]), None, 2)
    weights, gain, nats = region_weights(pairs, None, 4), float(flow.base.law.gain), []
    assert float(sampled_moments(flow, pairs, weights).voxels.mean()) == pytest.approx(1, abs=0.05)
    for factor in (0.7, 1.0, 1.4):
        flow.base.law.gain.fill_(factor * gain)
        voxels, errors, variances = sampled_moments(flow, pairs, weights)
        variances = variances * voxels.mean()  # each gain of regions with its gain of voxels, as in the fit
        shown = variances > 1e-9
        nats.append(float((variances.log() + errors / variances)[shown].mean()))
    assert nats[1] < min(nats[0], nats[2])


def test_regions_that_a_target_does_not_show_decide_nothing(train, small_default, held_out):
    """Where it ends, it holds the mean of other people. A region that it shows most of has the mean of that part."""
    flow, item = train(small_default).model, held_out.items[0]
    depth = torch.arange(16)[:, None, None].expand(16, 16, 16)
    weights = torch.stack([(part & item["mask"][0]).float() for part in (depth < 8, depth >= 8)])
    weights /= weights.sum(dim=(1, 2, 3), keepdim=True)
    whole = sampled_moments(flow, PairDataset([item]), weights)
    for cut, is_known in ((3, True), (8, False)):
        filled = {
            **item,
            "target": torch.where(depth < cut, 9.0, item["target"]),
            "shown": item["mask"] & (depth >= cut),
        }
        errors = sampled_moments(flow, PairDataset([filled]), weights).errors[0]
        assert errors[1] == whole.errors[0, 1]
        assert bool(errors[0].isfinite()) is is_known
        if is_known:
            assert errors[0] < 0.1  # 9 SUVR in the voxels that are filled would be more


def test_a_gain_far_from_those_that_were_sampled_is_found():
    """Variances at 1.5 and 2, one of them off by a tenth, tell that errors of a variance of 0.36 need a gain of 0.6."""
    variances = (torch.full((4, 3), value).double() for value in (0.9 * 1.5**2, 2.0**2))
    moments = [Moments(torch.ones(4), torch.full((4, 3), 0.36).double(), each) for each in variances]
    flow = SimpleNamespace(spread=None)
    assert _best_region_gain(flow, (1.5, 2.0), moments, torch.arange(4)) == pytest.approx(0.6, rel=0.01)
    moments[0].errors[1:, 0] = torch.nan
    assert _best_region_gain(flow, (1.5, 2.0), moments, torch.arange(4)) == pytest.approx(0.6, rel=0.01)
    moments[0].errors.fill_(torch.nan)
    assert _best_region_gain(flow, (1.5, 2.0), moments, torch.arange(4)) == 1


@pytest.mark.parametrize(("wanted", "passes"), [(0.9, 2), (1.15, 2), (1.4, 4), (0.6, 4)])
def test_only_a_gain_far_from_1_takes_more_than_two_passes(monkeypatch, wanted, passes):
    """Samples whose variance is the squared gain; the voxels' moments are those at the gain that is set."""
    law, sampled = SimpleNamespace(gain=torch.ones(())), []

    def moments(*_):
        gain = float(law.gain)
        sampled.append(gain)
        errors, variances = (torch.full((6, 3), value).double() for value in (wanted**2, gain**2))
        return Moments(torch.full((6,), 2 - gain**2).double(), errors, variances)

    monkeypatch.setattr("dualflow.training.calibrate.sampled_moments", moments)
    flow, groups = SimpleNamespace(spread=None), [torch.arange(3), torch.arange(3, 6)]
    gain, result = _fit_region_gain(flow, law, PairDataset([]), torch.ones(3, 1), groups)
    assert gain == pytest.approx(wanted, rel=0.001)
    assert float(law.gain) == pytest.approx(gain)
    assert len(sampled) == passes
    assert float(result.voxels[0]) == pytest.approx(2 - wanted**2, rel=0.01)


def gain_of(values):
    """The gain of people with these variances."""
    return lambda people: math.sqrt(torch.tensor(values)[people].mean())


def test_a_gain_that_chance_explains_is_none():
    """Of four people's variances, and their mean: the logarithm keeps 1 - (se / x)^2 of its value x."""
    four = torch.arange(4)
    assert shrunk(gain_of([1.44] * 4), [four]) == pytest.approx(1.2)
    assert shrunk(gain_of([0.2, 0.4, 0.6, 4.4]), [four]) == 1
    x, without = math.log(1.2), [0.5 * math.log(mean) for mean in (1.6, 1.5, 1.4, 1.26)]
    variance = 3 * (sum(value**2 for value in without) / 4 - (sum(without) / 4) ** 2)
    assert shrunk(gain_of([0.96, 1.26, 1.56, 1.98]), [four]) == pytest.approx(math.exp(x - variance / x))


def test_the_gain_of_few_validation_people_is_drawn_towards_that_of_many_training_people():
    """Where they differ by chance it is theirs; where they clearly differ it is that of the validation people."""
    many, few, nobody = torch.arange(40), torch.arange(40, 45), torch.arange(0)
    training, alike = [1.2, 1.7] * 20, [0.7, 2.2, 0.6, 1.4, 2.4]
    of_training = shrunk(gain_of(training), [many, nobody])
    assert 1.15 < of_training < math.sqrt(1.45)
    assert shrunk(gain_of([*training, *alike]), [many, few]) == pytest.approx(of_training, rel=0.01)
    assert shrunk(gain_of([*training, 4.0, 4.4, 4.2, 3.9, 4.1]), [many, few]) == pytest.approx(2.0, rel=0.05)


def test_without_directions_the_voxels_alone_are_calibrated(train, small_default, monkeypatch):
    """There is no gain of regions."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 2)
    choice = small_default.model_copy(update={"options": {**small_default.options, "low_rank": 0}})
    assert set(train(choice).record.calibration) == {"cross_fitted", "voxel_gain", "nats_before", "nats_after"}


def test_without_validation_scans_training_people_calibrate_around_cross_fitted_means(train, small_default, capsys):
    """The record and a warning say so."""
    record = train(small_default).record
    assert record.calibration["cross_fitted"] == 1
    assert record.calibration["nats_after"] <= record.calibration["nats_before"]
    assert "expected 4 or more: the intervals are calibrated on the training people" in capsys.readouterr().err


def test_too_few_scans_calibrate_nothing(train, small_default, monkeypatch, capsys):
    """The gains keep their value of 1, and a warning says so."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 10)
    trained = train(small_default)
    assert trained.record.calibration == {}
    assert float(trained.model.base.law.gain) == 1
    assert "not calibrated" in capsys.readouterr().err


def test_one_scan_of_each_person_calibrates_whatever_the_labels(monkeypatch):
    """People are not chosen by the order of their labels, which often tells the site, and a session adds nobody."""
    monkeypatch.setattr("dualflow.training.calibrate.MAX_PEOPLE", 20)
    keys = [f"sub-{site}{index:02d}_ses-{session}" for site in "AB" for index in range(40) for session in (1, 2)]
    chosen = one_scan_each(PairDataset([{"scan": key} for key in keys]))
    assert len(chosen) == len(set(chosen.subjects)) == 20
    assert all(key.endswith("_ses-1") for key in chosen.scans)
    assert 5 <= sum(key.startswith("sub-A") for key in chosen.scans) <= 15
    few = PairDataset([{"scan": key} for key in keys[:10]])
    assert one_scan_each(few).scans == keys[:10:2]


@pytest.mark.parametrize(("gain", "words"), [(2.0, "too narrow"), (0.5, "too wide"), (1.8, ""), (1.0, "")])
def test_a_gain_at_its_bound_is_announced(capsys, gain, words):
    """The intervals need more than calibration gives."""
    validation = PairDataset([{"scan": f"sub-{index}"} for index in range(4)])
    warn_if_uncertain({"cross_fitted": 0.0, "voxel_gain": gain, "region_gain": 1.0}, validation)
    warning = capsys.readouterr().err
    assert bool(warning) == bool(words)
    assert words in warning
    assert warning.count("voxels") == 2 * bool(words)


def test_a_calibration_that_costs_likelihood_is_announced(capsys):
    """One that costs next to nothing is not."""
    validation = PairDataset([{"scan": f"sub-{index}"} for index in range(4)])
    for after, words in ((-1.0, 0), (-0.99, 0), (-0.9, 1)):
        warn_if_uncertain({"cross_fitted": 0.0, "nats_before": -1.0, "nats_after": after}, validation)
        assert capsys.readouterr().err.count("raises the NLL by 0.10 nats per voxel") == words


def test_a_flow_without_a_law_of_spread_is_not_told_to_add_people(train, small_flow, capsys):
    """Without a map and directions there is nothing to calibrate, whatever the number of validation people."""
    options = small_flow.options | {"spread": "constant", "low_rank": 0}
    trained = train(small_flow.model_copy(update={"options": options}))
    assert trained.record.calibration == {}
    assert "not calibrated" not in capsys.readouterr().err


def test_a_flow_without_directions_or_map_is_not_calibrated(train, small_flow, monkeypatch):
    """Its record has neither choices of a base nor gains."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 2)
    options = {**small_flow.options, "low_rank": 0, "spread": "constant"}
    record = train(small_flow.model_copy(update={"options": options})).record
    assert record.calibration == {}
    assert record.base == {}
