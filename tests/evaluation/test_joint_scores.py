"""Energy score, contrast and person values against independent computations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm

from dualflow.evaluation.joint_scores import META_REGIONS, PERSON_VALUES, contrast
from dualflow.evaluation.metrics import METRICS, score
from dualflow.imaging.atlas import desikan_killiany
from dualflow.imaging.regions import RegionMap
from dualflow.inference.predict import Prediction
from dualflow.modalities import MODALITIES

JOINT = ("energy_score", "contrast_crps", *PERSON_VALUES)
NAMES = ("ctx-lh-precuneus", "ctx-rh-precuneus", "ctx-lh-superiorfrontal", "Left-Putamen")
LABELS = np.repeat(np.arange(1, 5), 2).reshape(4, 2, 1)
MASK = np.ones(LABELS.shape, bool)
REGIONS = RegionMap(LABELS, NAMES, (4.0, 4.0, 4.0))


def volumes(means: NDArray) -> NDArray:
    """Volumes `[..., D, H, W]` with these region means `[..., 4]`."""
    return means[..., LABELS - 1]


def scores(samples: NDArray, truth: NDArray, mask: NDArray = MASK) -> dict[str, float]:
    """Scores of samples of region means `[K, 4]`."""
    guess = Prediction(volumes(samples.mean(0)), volumes(samples.std(0)), volumes(samples))
    return score(guess, volumes(truth), mask, REGIONS, MODALITIES["FDG"])


def brute_force(samples: NDArray, truth: NDArray) -> float:
    """Energy score as a double loop over all pairs of different samples."""
    error = np.mean([np.linalg.norm(sample - truth) for sample in samples])
    pairs = [np.linalg.norm(first - second) for first, second in combinations(samples, 2)]
    return float(error - np.mean(pairs) / 2)


def test_energy_score_agrees_with_a_loop_over_pairs():
    """A region outside the mask is left out of the vectors."""
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(7, 4)), rng.normal(size=4)
    assert scores(samples, truth)["energy_score"] == pytest.approx(brute_force(samples, truth))
    without = MASK & (LABELS != 2)
    expected = brute_force(np.delete(samples, 1, axis=1), np.delete(truth, 1))
    assert scores(samples, truth, without)["energy_score"] == pytest.approx(expected)


def test_energy_score_is_unbiased_in_the_number_of_samples():
    """On average, 4 samples score like 400."""
    rng = np.random.default_rng(1)
    truths = rng.normal(size=(1000, 4))
    few = [scores(rng.normal(size=(4, 4)), truth)["energy_score"] for truth in truths]
    many = [scores(rng.normal(size=(400, 4)), truth)["energy_score"] for truth in truths[:150]]
    # For standard normal vectors E|X - y| - E|X - X'| / 2 is E|X - X'| / 2 on average.
    differences = rng.normal(size=(200_000, 4)) - rng.normal(size=(200_000, 4))
    expected = np.linalg.norm(differences, axis=1).mean() / 2
    assert np.mean(few) == pytest.approx(expected, rel=0.03)
    assert np.mean(many) == pytest.approx(expected, rel=0.06)


def test_energy_score_sees_the_correlation_that_margins_do_not_show():
    """Samples with the right joint law score better than independent ones with the same margins."""
    rng = np.random.default_rng(2)
    truths = rng.normal(size=(200, 1)) + 0.2 * rng.normal(size=(200, 4))
    joint = rng.normal(size=(64, 1)) + 0.2 * rng.normal(size=(64, 4))
    independent = np.stack([rng.permutation(column) for column in joint.T], axis=1)
    right, wrong = ([scores(samples, truth) for truth in truths] for samples in (joint, independent))
    for name, gain in (("energy_score", 0.02), ("contrast_crps", 0.1)):
        first, second = (np.mean([result[name] for result in results]) for results in (right, wrong))
        assert first < (1 - gain) * second
    assert np.mean([r["region_crps"] for r in right]) == pytest.approx(np.mean([w["region_crps"] for w in wrong]))


def test_contrast_crps_agrees_with_the_integral():
    """For a Gaussian contrast the score is the integral of the squared difference of distribution functions."""
    rng = np.random.default_rng(3)
    samples, truth = rng.normal([1.0, 1.2, 0.9, 5.0], 0.1, size=(3000, 4)), np.array([0.7, 0.9, 0.8, 5.0])
    real, mean, std = 0.8 - 0.8, 1.1 - 0.9, 0.1 * np.sqrt(1 / 4 + 1 / 4 + 1)
    below = quad(lambda x: norm.cdf(x, mean, std) ** 2, -2, real)[0]
    above = quad(lambda x: (1 - norm.cdf(x, mean, std)) ** 2, real, 2)[0]
    result = scores(samples, truth)
    assert result["contrast_crps"] == pytest.approx(below + above, rel=0.04)
    assert result["contrast_pit"] == pytest.approx(norm.cdf(real, mean, std), abs=0.03)


def test_contrast_is_a_difference_of_meta_regions():
    """Each parcel has equal weight, missing parcels are left out, and an absent meta-region gives NaN."""
    means = np.array([[1.0, 2.0, 0.5, 9.0], [np.nan, 2.0, 0.5, 9.0], [1.0, 2.0, np.nan, 9.0]])
    np.testing.assert_allclose(contrast(means, NAMES), [1.0, 1.5, np.nan])
    absent = scores(np.ones((3, 4)), np.ones(4), MASK & (LABELS != 3))
    assert "contrast_crps" not in absent
    assert "contrast_pit" not in absent


def test_meta_regions_are_parcels_of_the_atlas():
    """Every name exists in both hemispheres, and no parcel is in both meta-regions."""
    atlas = set(desikan_killiany()[1].values())
    parcels = [parcel for group in META_REGIONS.values() for parcel in group]
    assert {f"ctx-{side}-{parcel}" for parcel in parcels for side in ("lh", "rh")} <= atlas
    assert len(parcels) == len(set(parcels))


def test_person_values_by_hand():
    """Spread and error are root mean squares over the regions."""
    samples = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 1.0]])
    result = scores(samples, np.array([2.0, 1.0, 1.0, 5.0]))
    assert result["person_spread"] == pytest.approx(np.sqrt(2.0 / 4))
    assert result["person_error"] == pytest.approx(2.0)


def test_joint_scores_need_samples():
    """Spreads of region means give the person values; a spread of voxels or none gives no joint score at all."""
    ones = np.ones(LABELS.shape)
    target = volumes(np.array([1.0, 1.0, 1.0, 3.0]))
    for guess, expected in (
        (Prediction(ones, 0 * ones), set()),
        (Prediction(ones, ones), set()),
        (Prediction(ones, ones, None, np.array([0.1, 0.1, 0.1, 0.3])), {"person_spread", "person_error"}),
    ):
        result = score(guess, target, MASK, REGIONS, MODALITIES["FDG"])
        assert {name for name in JOINT if name in result} == expected
    assert result["person_spread"] == pytest.approx(np.sqrt(0.03))
    assert result["person_error"] == pytest.approx(1.0)


def test_person_values_are_no_metrics():
    """They are columns of the score table without a direction."""
    assert not set(PERSON_VALUES) & set(METRICS)
