"""Coverage, CRPS and reliability under known distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dualflow.evaluation.calibration import (
    Case,
    Normal,
    calibration_cases,
    coverage,
    mean_crps,
    over_subjects,
    pit_histogram,
    region_distribution,
    reliability,
    voxel_distribution,
)
from dualflow.evaluation.metrics import score
from dualflow.imaging.regions import RegionMap
from dualflow.inference.ensemble import Ensemble
from dualflow.inference.predict import Prediction
from dualflow.modalities import MODALITIES

SIZE = 40_000


def draws(count: int, scale: float = 1.0, seed: int = 0) -> Ensemble:
    return Ensemble(np.sort(scale * np.random.default_rng(seed).normal(size=(count, SIZE)), axis=0))


@pytest.fixture(scope="module")
def truth() -> NDArray:
    return np.random.default_rng(99).normal(size=SIZE)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("count", [16, 32, 50])
def test_samples_of_the_true_distribution_have_nominal_coverage(truth, level, count):
    """Samples from the distribution of the truth give nominal coverage, from 16 samples on."""
    assert coverage(draws(count), truth, level) == pytest.approx(level, abs=0.011)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_the_true_gaussian_has_nominal_coverage(truth, level):
    """The true Gaussian has nominal coverage; half its spread does not."""
    assert coverage(Normal(np.zeros(SIZE), np.ones(SIZE)), truth, level) == pytest.approx(level, abs=0.01)
    assert coverage(Normal(np.zeros(SIZE), np.full(SIZE, 0.5)), truth, level) < level - 0.15


def test_crps_is_lowest_for_the_true_spread(truth):
    """CRPS is proper: spreads that are too narrow or too wide score worse, for samples and Gaussians."""
    true, *wrong = (mean_crps(draws(16, scale), truth) for scale in (1, 0.5, 2))
    assert true < min(wrong)
    true, *wrong = (mean_crps(Normal(np.zeros(SIZE), np.full(SIZE, scale)), truth) for scale in (1.0, 0.5, 2.0))
    assert true < min(wrong)
    assert true == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)


def test_ensemble_crps_does_not_depend_on_the_number_of_samples(truth):
    """The estimator is unbiased: 8 samples score like the distribution itself."""
    assert mean_crps(draws(8), truth) == pytest.approx(1 / np.sqrt(np.pi), abs=0.015)


def test_pit_is_uniform_under_the_true_distribution(truth):
    """The probability integral transform has the mean and variance of a uniform variable."""
    for distribution in (draws(32), Normal(np.zeros(SIZE), np.ones(SIZE))):
        pit = distribution.pit(truth)
        assert pit.mean() == pytest.approx(0.5, abs=0.01)
        assert pit.var() == pytest.approx(1 / 12, abs=0.003)


def test_joint_samples_cover_regions_and_independent_voxels_do_not():
    """With a shared effect per region, joint samples cover region means; independent voxels of equal spread do not."""
    rng = np.random.default_rng(3)
    shape, count = (40, 10, 10), 24
    labels = 1 + np.broadcast_to(np.arange(40)[:, None, None], shape)
    regions, mask = RegionMap(labels, tuple(map(str, range(40))), (4, 4, 4)), np.ones(shape, bool)

    def volumes(n: int, joint: bool) -> NDArray:
        shared = rng.normal(size=(n, 40, 1, 1) if joint else (n, *shape))
        return 1 + 0.1 * shared + 0.02 * rng.normal(size=(n, *shape))

    joint, independent, truths = [], [], volumes(20, joint=True)
    for target in truths:
        for results, is_joint in ((joint, True), (independent, False)):
            samples = volumes(count, is_joint)
            guess = Prediction(samples.mean(0), samples.std(0, ddof=1), samples)
            results.append(score(guess, target, mask, regions, MODALITIES["FDG"]))
    for results, expected in ((joint, 0.8), (independent, 0.15)):
        assert np.mean([scores["voxel_coverage_80"] for scores in results]) == pytest.approx(0.8, abs=0.06)
        assert np.mean([scores["region_coverage_80"] for scores in results]) == pytest.approx(expected, abs=0.08)
    assert np.mean([s["region_crps"] for s in joint]) < np.mean([s["region_crps"] for s in independent])


def test_a_spread_per_voxel_gives_no_region_distribution():
    """Without samples the region distribution needs region spreads; without any spread there is no distribution."""
    shape = (2, 2, 2)
    regions, mask = RegionMap(np.ones(shape, int), ("a",), (4, 4, 4)), np.ones(shape, bool)
    ones = np.ones(shape)
    assert voxel_distribution(Prediction(ones, 0 * ones), mask) is None
    assert isinstance(voxel_distribution(Prediction(ones, ones), mask), Normal)
    assert region_distribution(Prediction(ones, ones), mask, regions) is None
    assert isinstance(region_distribution(Prediction(ones, ones, None, np.array([0.1])), mask, regions), Normal)
    assert isinstance(region_distribution(Prediction(ones, ones, np.ones((4, *shape))), mask, regions), Ensemble)


def test_reliability_rises_with_the_level():
    """The curve of a calibrated prediction lies on the diagonal and never falls."""
    shape = (20, 20, 20)
    rng = np.random.default_rng(5)
    regions = RegionMap(np.ones(shape, int), ("a",), (4, 4, 4))
    guess = Prediction(np.zeros(shape), np.ones(shape))
    curve = reliability(calibration_cases(guess, rng.normal(size=shape), np.ones(shape, bool), regions))
    assert set(curve["kind"]) == {"voxel"}
    assert curve["coverage"].is_monotonic_increasing
    np.testing.assert_allclose(curve["coverage"], curve["level"], atol=0.02)


@pytest.mark.parametrize(("spread", "outer"), [(1.0, 0.2), (0.5, 0.52), (2.0, 0.01)])
def test_a_pit_histogram_shows_whether_the_spread_fits(spread, outer):
    """It is flat for a calibrated prediction, a valley for one that is too narrow, a hill for one that is too wide."""
    shape, rng = (20, 20, 20), np.random.default_rng(5)
    regions = RegionMap(np.ones(shape, int), ("a",), (4, 4, 4))
    guess = Prediction(np.zeros(shape), np.full(shape, spread))
    cases = calibration_cases(guess, rng.normal(size=shape), np.ones(shape, bool), regions)
    shares = pit_histogram(cases).set_index("pit")["share"]
    assert shares.sum() == pytest.approx(1)
    assert shares.index.tolist() == pytest.approx(np.linspace(0.05, 0.95, 10))
    assert shares.iloc[[0, -1]].sum() == pytest.approx(outer, abs=0.02)


@pytest.mark.parametrize("count", [3, 8, 16, 32, 96])
def test_the_pit_histogram_of_calibrated_samples_is_flat(count):
    """Also if the number of ranks is no multiple of that of the bins."""
    rng = np.random.default_rng(0)
    samples, truth = np.sort(rng.normal(size=(count, 40_000)), axis=0), rng.normal(size=40_000)
    shares = pit_histogram([Case("voxel", Ensemble(samples), truth)])["share"]
    np.testing.assert_allclose(shares, 0.1, atol=0.006)


def test_every_subject_counts_once():
    """However many scans a subject has."""
    scans = [("sub-1", 0.2), ("sub-1", 0.4), ("sub-2", 0.6)]
    curves = [
        pd.DataFrame({"model": ["m"], "kind": ["voxel"], "pit": [0.5], "subject": [subject], "share": [share]})
        for subject, share in scans
    ]
    assert over_subjects(curves, "pit")["share"].tolist() == pytest.approx([0.45])
