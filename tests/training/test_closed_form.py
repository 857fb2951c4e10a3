"""The cache of closed-form fits returns the fit bit for bit."""

import json

import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.flows.closed_form_fits import fit_closed_form
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import RIDGES, SIGMAS
from dualflow.flows.regression_scans import RegressionScans
from dualflow.flows.stacked_fit import LADDER
from dualflow.flows.stacked_mean import StackedMean
from dualflow.training import closed_form as module
from dualflow.training.closed_form import ClosedFormCache, subject_folds


@pytest.fixture
def fit(phantoms, monkeypatch):
    """Fit a regression with a cache; return weights, cross-fitted images, choices, and the number of computed fits."""
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return fit_closed_form(*arguments, **options)

    monkeypatch.setattr(module, "fit_closed_form", counted)

    def run(cache, ridges=RIDGES):
        model = LocalLinear((16, 16, 16), 1, 1)
        scans = RegressionScans(phantoms, subject_folds(phantoms))
        _, images, chosen = cache(scans, model, ridges=ridges, sigmas=SIGMAS)
        return model.state_dict(), images, chosen, len(calls)

    return run


def test_a_cached_fit_equals_the_computed_one(fit, tmp_path):
    """Coefficients, cross-fitted images and choices are equal; `seconds` is the time of the original fit."""
    first, second = ClosedFormCache(tmp_path, "data"), ClosedFormCache(tmp_path, "data")
    weights, images, chosen, _ = fit(first)
    cached_weights, cached_images, cached_chosen, count = fit(second)
    assert count == 1
    assert chosen == cached_chosen
    assert all(torch.equal(value, cached_weights[name]) for name, value in weights.items())
    assert all(torch.equal(a, b) for a, b in zip(images, cached_images, strict=True))
    assert second.seconds == first.seconds > 0


def test_a_cache_miss_is_computed(fit, tmp_path):
    """Other data, other ridges, a damaged file, or no cache folder."""
    fit(ClosedFormCache(tmp_path, "data"))
    assert fit(ClosedFormCache(tmp_path, "other data"))[3] == 2
    assert fit(ClosedFormCache(tmp_path, "data"), ridges=(1.0,))[3] == 3
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert fit(ClosedFormCache(tmp_path, "data"))[3] == 4
    assert fit(ClosedFormCache())[3] == 5


def test_a_flipped_bit_in_the_cache_is_noticed(fit, tmp_path, capsys):
    """The fit is computed again, with a warning that names the file."""
    weights, *_ = fit(ClosedFormCache(tmp_path, "data"))
    (file,) = tmp_path.glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
    again, _, _, count = fit(ClosedFormCache(tmp_path, "data"))
    assert count == 2
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert f"warning: {file}: damaged fit skipped" in capsys.readouterr().err


def test_flow_mean_and_baseline_share_a_fit(fit, phantoms, tmp_path):
    """The baseline `local_linear` is the same regression as a flow's mean."""
    weights, images, _, _ = fit(ClosedFormCache(tmp_path, "data"))
    baseline = BASELINES["local_linear"]((16, 16, 16), 1)
    shared = baseline.fit(phantoms, subject_folds(phantoms), ClosedFormCache(tmp_path, "data"))
    assert fit(ClosedFormCache(tmp_path, "data"))[3] == 1
    assert all(torch.equal(a, b) for a, b in zip(images, shared, strict=True))
    regression = next(baseline.children()).state_dict()
    assert all(torch.equal(value, regression[name]) for name, value in weights.items())


def test_a_stacked_mean_is_cached(phantoms, tmp_path):
    """Its buffers, images and choices are those of the fit; its options are part of the key."""
    scans = RegressionScans(phantoms, subject_folds(phantoms))
    options = {"ridges": (3.0,), "sigmas": (1.1,)}
    fits = [ClosedFormCache(tmp_path, "data")(scans, StackedMean((16, 16, 16), 1, 1), **options) for _ in range(2)]
    (model, images, facts), (cached, cached_images, cached_facts) = fits
    assert json.loads(json.dumps(facts)) == cached_facts
    assert all(torch.equal(value, cached.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(images, cached_images, strict=True))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    ClosedFormCache(tmp_path, "data")(scans, StackedMean((16, 16, 16), 1, 1), **options, ladder=LADDER[:1])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_old_fits_are_removed(fit, tmp_path):
    """The cache keeps the newest KEPT fits."""
    for index in range(module.KEPT + 2):
        fit(ClosedFormCache(tmp_path, str(index)), ridges=(1.0,))
    assert len(list(tmp_path.glob("*.safetensors"))) == module.KEPT
