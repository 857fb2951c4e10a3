"""Closed-form fits are shared by the trainings of a study, bit for bit."""

import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import RIDGES, SIGMAS, fit_local_linear
from dualflow.training import closed_form as module
from dualflow.training.closed_form import ClosedFormCache, RegressionScans, subject_folds


@pytest.fixture
def fit(phantoms, monkeypatch):
    """Fit a regression with a cache, counting the fits that are computed."""
    computed = []

    def counted(*arguments, **options):
        computed.append(1)
        return fit_local_linear(*arguments, **options)

    monkeypatch.setattr(module, "fit_local_linear", counted)

    def go(cache, ridges=RIDGES):
        model = LocalLinear((16, 16, 16), 1, 1)
        scans = RegressionScans(phantoms, subject_folds(phantoms))
        _, images, chosen = cache(scans, model, ridges=ridges, sigmas=SIGMAS)
        return model.state_dict(), images, chosen, len(computed)

    return go


def test_a_cached_fit_is_the_fit(fit, tmp_path):
    """Coefficients, cross-fitted images and choices are equal, and its seconds are those of the computation."""
    first, second = ClosedFormCache(tmp_path, "data"), ClosedFormCache(tmp_path, "data")
    weights, images, chosen, _ = fit(first)
    weights_again, images_again, chosen_again, computed = fit(second)
    assert computed == 1
    assert chosen == chosen_again
    assert all(torch.equal(value, weights_again[name]) for name, value in weights.items())
    assert all(torch.equal(a, b) for a, b in zip(images, images_again, strict=True))
    assert second.seconds == first.seconds > 0


def test_another_fit_is_computed(fit, tmp_path):
    """Other data, other ridges, a damaged file, and no folder at all."""
    fit(ClosedFormCache(tmp_path, "data"))
    assert fit(ClosedFormCache(tmp_path, "other data"))[3] == 2
    assert fit(ClosedFormCache(tmp_path, "data"), ridges=(1.0,))[3] == 3
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert fit(ClosedFormCache(tmp_path, "data"))[3] == 4
    assert fit(ClosedFormCache())[3] == 5


def test_flow_mean_and_baseline_share_a_fit(fit, phantoms, tmp_path):
    """The baseline `local_linear` is the regression that a flow's mean is."""
    weights, images, _, _ = fit(ClosedFormCache(tmp_path, "data"))
    baseline = BASELINES["local_linear"]((16, 16, 16), 1)
    shared = baseline.fit(phantoms, subject_folds(phantoms), ClosedFormCache(tmp_path, "data"))
    assert fit(ClosedFormCache(tmp_path, "data"))[3] == 1
    assert all(torch.equal(a, b) for a, b in zip(images, shared, strict=True))
    regression = next(baseline.children()).state_dict()
    assert all(torch.equal(value, regression[name]) for name, value in weights.items())


def test_old_fits_are_removed(fit, tmp_path):
    """The cache keeps the newest few."""
    for index in range(module.KEPT + 2):
        fit(ClosedFormCache(tmp_path, str(index)), ridges=(1.0,))
    assert len(list(tmp_path.glob("*.safetensors"))) == module.KEPT
