"""Statistics of simulated studies agree with theory, and their errors with the spread over repetitions."""

import numpy as np
import pytest

from dualflow.imputation.validity_statistics import Estimates, Resamples, average, validity_statistics

STUDIES, EFFECTS = 40, 30


def estimates(values, se):
    se = np.full_like(values, se)
    return Estimates(values, se, values - 1.96 * se, values + 1.96 * se)


def simulated(rng, bias=0.0, truth=0.0):
    """All targets; complete cases with twice the variance; a method in between with a bias in standard errors."""
    full = truth + rng.normal(size=(STUDIES, EFFECTS))
    lost, imputed = rng.normal(size=(2, STUDIES, EFFECTS))
    method_se = np.sqrt(1.5)
    return full, estimates(full + lost, np.sqrt(2)), estimates(
        full + np.sqrt(0.5) * imputed + bias * method_se, method_se
    )  # fmt: skip


def statistics(rng, bias=0.0, paired=True):
    full, complete, method = simulated(rng, bias)
    truth = np.zeros(EFFECTS)
    reference = full if paired else np.zeros_like(full)
    return validity_statistics(method, complete, reference, truth, np.arange(EFFECTS) < 3)


def test_statistics_are_those_of_the_law():
    result = statistics(np.random.default_rng(0), bias=0.5)
    assert result["bias"].value == pytest.approx(0.5, abs=0.05)
    assert result["ratio"].value == pytest.approx(1, abs=0.05)
    assert result["gain"].value == pytest.approx(33, abs=15)
    assert result["width"].value == pytest.approx(np.sqrt(0.75))
    assert result["width"].error == pytest.approx(0, abs=1e-9)
    assert result["excluded"].value == pytest.approx(7.9, abs=3)


def test_errors_are_those_over_repetitions():
    """The jackknife's errors, against the spread of the statistics over 60 benchmarks."""
    results = [statistics(np.random.default_rng(seed), bias=0.3) for seed in range(60)]
    for name in ("excluded", "bias", "ratio", "gain", "found"):
        spread = np.std([result[name].value for result in results])
        claimed = np.sqrt(np.mean([result[name].error ** 2 for result in results]))
        assert claimed == pytest.approx(spread, rel=0.35), name


def test_the_same_study_tells_a_bias_with_less_noise():
    paired, plain = (
        [statistics(np.random.default_rng(seed), 0.3, paired=paired)["bias"].value for seed in range(30)]
        for paired in (True, False)
    )
    assert np.mean(paired) == pytest.approx(0.3, abs=0.02)
    assert np.std(paired) < 0.7 * np.std(plain)


def test_a_bias_of_0_has_an_upper_end():
    bias = statistics(np.random.default_rng(1))["bias"]
    assert bias.value < 0.06
    assert 0.02 < bias.error < 0.12


def test_resamples_leave_out_unknown_values():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [6.0, 4.0]])
    resamples = Resamples(3)
    np.testing.assert_allclose(resamples.mean(values)[:, 0], [3, 4, 3.5, 1.5])
    np.testing.assert_allclose(resamples.variance(values)[:, 0], [7, 8, 12.5, 0.5])
    np.testing.assert_allclose(resamples.mean(values)[:, 1], [4, 4, 4, np.nan])
    assert np.isnan(resamples.variance(values)[:, 1]).all()
    np.testing.assert_allclose(average(resamples.mean(values)), [3.5, 4, 3.75, 1.5])


def test_the_error_of_a_mean_is_that_of_independent_studies():
    values = np.random.default_rng(0).normal(size=(20, 1))
    resamples = Resamples(20)
    assert resamples.statistic(resamples.mean(values)[:, 0]).error == pytest.approx(values.std(ddof=1) / np.sqrt(20))
