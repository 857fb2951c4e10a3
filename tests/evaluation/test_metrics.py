"""Image metrics against other implementations and by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import pearsonr

from dualflow.errors import ShapeError
from dualflow.evaluation.calibration import calibration_cases
from dualflow.evaluation.metrics import METRICS, Context, intraclass_correlation, mae, psnr, ssim
from dualflow.evaluation.metrics import score as score_prediction
from dualflow.imaging.regions import RegionMap
from dualflow.inference.predict import Prediction
from dualflow.modalities import MODALITIES

ROW = MODALITIES["FDG"]
SHAPE = (16, 18, 14)


@pytest.fixture
def scene() -> tuple[NDArray, NDArray, NDArray, RegionMap]:
    rng = np.random.default_rng(0)
    target = np.clip(1 + gaussian_filter(rng.normal(size=SHAPE), 2) * 3, 0, None).astype(np.float32)
    estimate = (target + 0.1 * rng.normal(size=SHAPE)).astype(np.float32)
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    labels = np.where(mask, np.arange(SHAPE[0])[:, None, None] // 3, 0)
    return estimate, target, mask, RegionMap(labels, tuple("abcd"), (4.0, 4.0, 4.0))


def test_perfect_prediction(scene):
    """The truth has no error and full similarity; without a spread it has neither coverage nor CRPS."""
    _, target, mask, regions = scene
    scores = score_prediction(Prediction(target, np.zeros(SHAPE)), target, mask, regions, ROW)
    assert scores["mae"] == scores["region_mae"] == 0
    assert scores["ssim"] == pytest.approx(1, abs=1e-6)
    assert scores["pearson_r"] == pytest.approx(1)
    assert scores["psnr"] == np.inf
    assert not any(word in name for name in scores for word in ("coverage", "spread", "crps"))


def test_mae_psnr_and_region_errors_by_hand():
    """A constant error of 0.1 SUVR on an image of 1 gives MAE 0.1, 26.02 dB over a range of 2, and 10 % per region."""
    target, mask = np.ones((4, 4, 4)), np.ones((4, 4, 4), bool)
    labels = 1 + (np.arange(64).reshape(4, 4, 4) > 31)
    scores = score_prediction(
        Prediction(target + 0.1, np.zeros_like(target)), target, mask, RegionMap(labels, ("a", "b"), (4, 4, 4)), ROW
    )
    assert scores["mae"] == pytest.approx(0.1)
    assert scores["psnr"] == pytest.approx(20 * np.log10(2 / 0.1))
    assert scores["region_mae"] == pytest.approx(10)
    assert scores["region_bias"] == pytest.approx(10)


def test_the_error_to_the_attainable_mean_is_known_for_a_simulated_subject_only(scene):
    """It is the mean absolute difference from the expected image, and absent without one."""
    estimate, target, mask, regions = scene
    guess = Prediction(estimate, np.zeros(SHAPE))
    known = score_prediction(guess, target, mask, regions, ROW, attainable=np.where(mask, estimate - 0.25, np.inf))
    assert known["attainable_error"] == pytest.approx(0.25)
    assert "attainable_error" not in score_prediction(guess, target, mask, regions, ROW)


def test_region_bias_keeps_its_sign_and_region_error_does_not():
    """Errors that cancel over regions give no bias, but a mean absolute error."""
    labels = 1 + (np.arange(64).reshape(4, 4, 4) > 31)
    estimate = np.where(labels == 1, 1.2, 0.8)
    regions = RegionMap(labels, ("a", "b"), (4, 4, 4))
    scores = score_prediction(Prediction(estimate, 0 * estimate), np.ones((4, 4, 4)), labels > 0, regions, ROW)
    assert scores["region_bias"] == pytest.approx(0, abs=1e-9)
    assert scores["region_mae"] == pytest.approx(20)


def test_ssim_agrees_with_another_implementation(scene):
    """The masked mean of scikit-image's Gaussian SSIM map gives the same value."""
    skimage = pytest.importorskip("skimage.metrics")
    estimate, target, _, regions = scene
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    everything = ssim(estimate, target, np.ones(SHAPE, bool), Context(ROW, regions))
    padded = [np.pad(image, 5, mode="edge") for image in (estimate, target)]
    _, similarity = skimage.structural_similarity(*padded, full=True, win_size=11, **options)
    assert similarity[5:-5, 5:-5, 5:-5].mean() == pytest.approx(everything, abs=1e-5)


def test_voxels_outside_the_mask_have_no_effect(scene):
    """A change outside the mask leaves every metric unchanged."""
    estimate, target, mask, regions = scene
    rng = np.random.default_rng(1)
    samples = estimate + 0.1 * rng.normal(size=(8, *SHAPE)).astype(np.float32)
    first = Prediction(estimate, samples.std(0), samples)
    changed = Prediction(
        *(np.where(mask, image, 50 * rng.random(SHAPE)) for image in (estimate, samples.std(0))),
        np.where(mask, samples, -7),
    )
    changed_target = np.where(mask, target, 99)
    assert score_prediction(first, target, mask, regions, ROW) == pytest.approx(
        score_prediction(changed, changed_target, mask, regions, ROW)
    )


def test_correlations_agree_with_scipy(scene):
    """Pearson r over voxels and over region means agrees with SciPy."""
    estimate, target, mask, regions = scene
    scores = score_prediction(Prediction(estimate, np.zeros(SHAPE)), target, mask, regions, ROW)
    assert scores["pearson_r"] == pytest.approx(pearsonr(estimate[mask], target[mask]).statistic, abs=1e-6)
    means = regions.means(estimate, mask), regions.means(target, mask)
    assert scores["region_r"] == pytest.approx(pearsonr(*means).statistic, abs=1e-6)


def test_scores_of_regions_are_unknown_where_the_mask_holds_none(scene):
    """No score of regions is that of a perfect or of the worst prediction; those of voxels stay."""
    estimate, target, mask, regions = scene
    elsewhere = RegionMap(np.where(mask, 0, 1), regions.names[:1], regions.voxel_mm)
    samples = estimate + np.linspace(-0.2, 0.2, 5, dtype=np.float32)[:, None, None, None]
    guesses = [
        Prediction(estimate, samples.std(0), samples),
        Prediction(estimate, np.full(SHAPE, 0.1), None, np.full(1, 0.1)),
    ]
    for guess in guesses:
        scores = score_prediction(guess, target, mask, elsewhere, ROW)
        of_regions = [name for name, metric in METRICS.items() if metric.over == "regions" and name in scores]
        assert {"region_mae", "region_crps", "region_pit_distance"} <= set(of_regions)
        assert np.isnan([scores[name] for name in of_regions]).all()
        assert np.isfinite([scores["mae"], scores["voxel_crps"]]).all()
        assert {case.kind for case in calibration_cases(guess, target, mask, elsewhere)} == {"voxel"}


def test_spread_error_r_follows_the_noise_level(scene):
    """A spread that follows the noise level correlates with the smoothed error; the reverse spread anticorrelates."""
    _, target, mask, regions = scene
    level = np.linspace(0.02, 0.4, SHAPE[0], dtype=np.float32)[:, None, None] * np.ones(SHAPE, np.float32)
    estimate = target + level * np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    right = score_prediction(Prediction(estimate, level), target, mask, regions, ROW)["spread_error_r"]
    wrong = score_prediction(Prediction(estimate, 0.5 - level), target, mask, regions, ROW)["spread_error_r"]
    assert right > 0.6
    assert wrong == pytest.approx(-right, abs=1e-6)


def test_psnr_range_is_the_modality_window(scene):
    """A window half as wide costs 6.02 dB."""
    estimate, target, mask, regions = scene
    wide = psnr(estimate, target, mask, Context(ROW, regions))
    narrow = psnr(estimate, target, mask, Context(replace(ROW, window=(0.0, 1.0)), regions))
    assert wide - narrow == pytest.approx(20 * np.log10(2))


def test_losses_order_values_by_quality():
    """A better value has a smaller loss for every direction of improvement."""
    assert METRICS["mae"].loss(np.array(0.1)) < METRICS["mae"].loss(np.array(0.2))
    assert METRICS["ssim"].loss(np.array(0.9)) < METRICS["ssim"].loss(np.array(0.8))
    assert METRICS["region_coverage_80"].loss(np.array(0.82)) < METRICS["region_coverage_80"].loss(np.array(0.95))


def test_empty_mask_and_other_grids_are_refused(scene):
    """An empty mask or another grid is an error that names the shapes."""
    estimate, target, mask, regions = scene
    with pytest.raises(ShapeError, match="0 voxels"):
        score_prediction(Prediction(estimate, 0 * estimate), target, mask & False, regions, ROW)
    with pytest.raises(ShapeError, match="grid"):
        score_prediction(Prediction(estimate[1:], 0 * estimate[1:]), target, mask, regions, ROW)


def test_mae_is_exact_in_float32(scene):
    """The mean is computed in double precision for any image type."""
    estimate, target, mask, regions = scene
    exact = np.abs(estimate.astype(float) - target)[mask].mean()
    assert mae(estimate, target, mask, Context(ROW, regions)) == pytest.approx(exact, rel=1e-6)


def test_rmse_by_hand(scene):
    """The root of the mean square over the mask."""
    estimate, target, mask, regions = scene
    scores = score_prediction(Prediction(estimate, np.zeros(SHAPE)), target, mask, regions, ROW)
    assert scores["rmse"] == pytest.approx(np.linalg.norm((estimate - target)[mask]) / np.sqrt(mask.sum()), rel=1e-5)


def test_icc_agrees_with_an_explicit_analysis_of_variance():
    """Shrout and Fleiss' example of ICC(2,1) for judges 2 and 3, from sums of squares; a bias lowers it."""
    pairs = np.array([[2, 5], [1, 3], [4, 6], [1, 2], [5, 6], [2, 4]], float)
    grand, (n, k) = pairs.mean(), pairs.shape
    between = k * sum((row.mean() - grand) ** 2 for row in pairs) / (n - 1)
    judges = n * sum((column.mean() - grand) ** 2 for column in pairs.T) / (k - 1)
    total = sum((value - grand) ** 2 for value in pairs.ravel())
    error = (total - (n - 1) * between - (k - 1) * judges) / ((n - 1) * (k - 1))
    expected = (between - error) / (between + (k - 1) * error + k * (judges - error) / n)
    assert intraclass_correlation(pairs) == pytest.approx(expected)
    offset = np.array([0, pairs[:, 1].mean() - pairs[:, 0].mean()])
    assert intraclass_correlation(pairs + offset) < expected < intraclass_correlation(pairs - offset)
    assert intraclass_correlation(np.stack([pairs[:, 0]] * 2, axis=1)) == pytest.approx(1)
    assert np.isnan(intraclass_correlation(pairs[:1]))


def test_the_ad_signature_is_a_mean_over_voxels():
    """Posterior cingulate, inferior parietal and inferior temporal parcels, weighted by their voxels."""
    names = ("ctx-lh-posteriorcingulate", "ctx-rh-inferiorparietal", "ctx-lh-superiorfrontal")
    labels = np.repeat([1, 2, 2, 3], 16).reshape(4, 4, 4)
    target, regions = np.choose(labels, [0, 1.0, 1.5, 9.0]), RegionMap(labels, names, (4, 4, 4))
    estimate = np.where(labels == 1, 1.3, target)
    scores = score_prediction(Prediction(estimate, 0 * estimate), target, labels > 0, regions, ROW)
    assert (scores["ad_roi_real"], scores["ad_roi_estimate"]) == pytest.approx((4 / 3, 4.3 / 3))
    assert scores["ad_roi_bias"] == scores["ad_roi_error"] == pytest.approx(100 * 0.3 / 4)
    # Without one of its regions its level would say who lacks it.
    for mask, atlas in ((labels > 1, regions), (labels > 0, replace(regions, labels=np.where(labels == 1, 0, labels)))):
        scores = score_prediction(Prediction(estimate, 0 * estimate), target, mask, atlas, ROW)
        assert "ad_roi_real" not in scores


def test_diversity_and_pit_agree_with_their_definitions(scene):
    """Diversity is relative to the samples' distance from the real image; the PIT of the middle sample is one half."""
    _, target, mask, regions = scene
    samples = target + np.linspace(-0.2, 0.2, 5)[:, None, None, None] ** 3
    scores = score_prediction(Prediction(target, samples.std(0), samples), target, mask, regions, ROW)
    pairs = [np.abs(first - second)[mask].mean() for first, second in combinations(samples, 2)]
    distances = [np.abs(sample - target)[mask].mean() for sample in samples]
    assert scores["sample_diversity"] == pytest.approx(np.mean(pairs) / np.mean(distances), rel=1e-5)
    assert scores["region_pit_distance"] == pytest.approx(0.25)
    assert scores["voxel_sharpness"] == pytest.approx(samples.std(0)[mask].mean())
