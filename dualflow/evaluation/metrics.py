"""METRICS: one row per metric, computed inside the brain mask, with its unit and direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from dualflow.arrays import Bools, Floats
from dualflow.errors import ShapeError
from dualflow.evaluation.calibration import (
    LEVELS,
    coverage,
    distance_from_uniform,
    mean_crps,
    region_distribution,
    voxel_distribution,
)
from dualflow.evaluation.joint_scores import AD_ROI, PERSON_VALUES, contrast_crps, energy_score
from dualflow.evaluation.measures import Context, Metric, MetricFunction
from dualflow.imaging.geometry import FWHM
from dualflow.imaging.regions import RegionMap, mean_of_known
from dualflow.inference.ensemble import Ensemble
from dualflow.modalities import Modality

if TYPE_CHECKING:  # torch takes a second to import, and tables need only the names of metrics
    from dualflow.inference.predict import Prediction

SMOOTHING_FWHM_MM = 6.0


def score(
    prediction: Prediction,
    target: Floats,
    mask: Bools,
    regions: RegionMap,
    row: Modality,
    bits: float | None = None,
    attainable: Floats | None = None,
) -> dict[str, float]:
    """Compute every applicable metric of METRICS for `prediction` of the real `target` `[D, H, W]` inside `mask`.

    The result also has the applicable PERSON_VALUES, which STUDY_METRICS read. `bits` is `bits_in_mask` of
    `likelihood.likelihood`, for models with a density; `attainable` is the expected target `[D, H, W]` of a simulated
    subject.

    Raises:
        ShapeError: the arrays do not share one grid, or the mask is empty.
    """
    shapes = {prediction.mean.shape, prediction.std.shape, target.shape, mask.shape, regions.labels.shape}
    if len(shapes) > 1 or not mask.any():
        raise ShapeError(
            f"prediction, target, mask and regions have shapes {sorted(shapes)} and {int(mask.sum())} voxels in the "
            "mask; expected one model grid and a mask that is not empty"
        )
    samples = None if prediction.samples is None else regions.means(prediction.samples, mask)
    context = Context(
        row,
        regions,
        voxels=voxel_distribution(prediction, mask),
        region_means=region_distribution(prediction, mask, regions),
        region_samples=samples,
        region_std=prediction.region_std if samples is None else samples.std(axis=0, ddof=1),
        std=prediction.std,
        bits=bits,
        attainable=attainable,
    )
    functions = {name: metric.function for name, metric in METRICS.items()} | PERSON_VALUES
    values = {name: function(prediction.mean, target, mask, context) for name, function in functions.items()}
    return {name: value for name, value in values.items() if value is not None}


def mae(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Mean absolute error over the mask."""
    return float(np.abs(estimate[mask] - target[mask]).mean(dtype=np.float64))


def attainable_error(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Mean absolute difference over the mask from the expected target, for a simulated cohort; None without it."""
    return None if context.attainable is None else mae(estimate, context.attainable, mask, context)


def rmse(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Root of the mean squared error over the mask."""
    return float(np.sqrt(np.square(estimate[mask] - target[mask], dtype=np.float64).mean()))


def psnr(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Peak signal-to-noise ratio over the mask in dB; the peak is the width of the modality's window."""
    error = np.square(estimate[mask] - target[mask], dtype=np.float64).mean()
    return float(10 * np.log10(context.data_range**2 / error)) if error > 0 else float("inf")


def ssim(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Structural similarity (Wang et al. 2004) in 3D, its map averaged over the mask.

    Both images are set to 0 outside the mask, so voxels outside have no effect.
    """
    images = np.where(mask, np.stack([estimate, target]), 0.0).astype(np.float32)
    import torch  # takes a second to import, and tables need only the names of metrics

    from dualflow.evaluation.ssim import KERNEL, ssim_map

    # The filter drops the border; padding by its radius keeps the map on the grid of the images.
    padded = np.pad(images, [(0, 0), *[(KERNEL // 2,) * 2] * 3], mode="edge")
    first, second = torch.from_numpy(padded)
    similarity = ssim_map(first, second, context.data_range)
    return float(similarity.numpy()[mask].mean(dtype=np.float64))


def ms_ssim(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Multi-scale structural similarity (Wang et al. 2003) in 3D, each scale averaged over the mask.

    The scales are the finest ones of the paper that the window fits into, with their exponents divided by their sum: 3
    on the 4 mm grid, 2 on an 8 mm grid. Values of different grids do not compare.
    """
    images = np.where(mask, np.stack([estimate, target]), 0.0).astype(np.float32)
    import torch  # takes a second to import, and tables need only the names of metrics

    from dualflow.evaluation.ssim import multi_scale_ssim

    first, second = torch.from_numpy(images)
    return multi_scale_ssim(first, second, torch.from_numpy(mask), context.data_range)


def pearson_r(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Pearson correlation over the voxels of the mask."""
    return correlation(estimate[mask], target[mask])


def region_r(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Pearson correlation over the region means of one subject."""
    return correlation(context.regions.means(estimate, mask), context.regions.means(target, mask))


def region_icc(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Absolute agreement of the region means of one subject, ICC(A,1) (McGraw and Wong 1996)."""
    means = np.stack([context.regions.means(image, mask) for image in (estimate, target)], axis=1)
    return intraclass_correlation(means[np.isfinite(means).all(axis=1)])


def ad_roi_error(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Absolute difference of the means of the AD signature region (Landau et al. 2011), in % of the real mean."""
    bias = ad_roi_bias(estimate, target, mask, context)
    return None if bias is None else abs(bias)


def ad_roi_bias(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Signed difference of the means of the AD signature region, in % of the real mean; positive is too high."""
    predicted, real = (context.meta_region_mean(AD_ROI, image, mask) for image in (estimate, target))
    return None if predicted is None or not real else 100 * (predicted - real) / real


def region_mae(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Mean over the regions of the absolute difference of means, in % of the real mean."""
    return mean_of_known(np.abs(_region_difference(estimate, target, mask, context)))


def region_bias(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float:
    """Mean over the regions of the signed difference of means, in % of the real mean; positive is too high."""
    return mean_of_known(_region_difference(estimate, target, mask, context))


def voxel_crps(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Mean continuous ranked probability score of the voxels; None without a spread."""
    return None if context.voxels is None else mean_crps(context.voxels, target[mask])


def region_crps(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Mean continuous ranked probability score of the region means; None without their distribution."""
    distribution = context.region_means
    return None if distribution is None else mean_crps(distribution, context.regions.means(target, mask))


def voxel_sharpness(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Mean over the mask of the predicted standard deviation; None without a spread.

    Of two calibrated models the one with the smaller spread knows more.
    """
    return None if context.std is None or context.voxels is None else float(context.std[mask].mean(dtype=np.float64))


def sample_diversity(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Mean absolute difference of two samples over that of a sample and the real image; None without samples.

    If the predicted law is right, it is 1; below 1 samples are too alike.
    """
    if not isinstance(context.voxels, Ensemble):
        return None
    diversity = context.voxels.diversity()
    # CRPS = E|sample - real| - E|sample - sample'| / 2 (Gneiting & Raftery 2007, equation 21).
    distance = mean_crps(context.voxels, target[mask]) + diversity / 2
    return diversity / distance if distance > 0 else None


def region_pit_distance(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Deviation from the uniform distribution of the probability integral transforms of one subject's regions."""
    if context.region_means is None:
        return None
    truth = context.regions.means(target, mask)
    finite = np.isfinite(truth)
    values = context.region_means.pit(truth)[finite, None]
    return float(distance_from_uniform(values, np.ones((1, len(values))))[0]) if len(values) else float("nan")


def spread_error_r(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Correlation over the mask of the predicted standard deviation with |error|, both smoothed within the mask.

    A single |error| is mostly noise; its 6 mm average shows whether the spread is wide where errors are large.
    """
    if context.std is None or not np.ptp(context.std[mask]) > 0:
        return None
    sigma = [SMOOTHING_FWHM_MM / FWHM / edge for edge in context.regions.voxel_mm]
    weight = gaussian_filter(mask.astype(np.float64), sigma, mode="constant")[mask]
    spread, error = (
        gaussian_filter(np.where(mask, image, 0.0).astype(np.float64), sigma, mode="constant")[mask] / weight
        for image in (context.std, np.abs(estimate - target))
    )
    return correlation(spread, error)


def bits_in_mask(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Negative log2 density per voxel of the mask; None for a model without a density."""
    return context.bits


def correlation(first: Floats, second: Floats) -> float:
    """Pearson correlation of the entries that are finite in both; NaN if either is constant."""
    finite = np.isfinite(first) & np.isfinite(second)
    left, right = (np.asarray(values[finite], np.float64) for values in (first, second))
    if len(left) < 2 or not (np.ptp(left) > 0 and np.ptp(right) > 0):
        return float("nan")
    return float(np.corrcoef(left, right)[0, 1])


def intraclass_correlation(pairs: Floats) -> float:
    """ICC(A,1) of pairs `[N, 2]`, from the mean squares of a two-way analysis of variance; NaN without variance."""
    count = len(pairs)
    if count < 2:
        return float("nan")
    means = pairs.mean(axis=1)
    rows = 2 * np.var(means, ddof=1)
    columns = count * np.var(pairs.mean(axis=0), ddof=1)
    residuals = pairs - means[:, None] - pairs.mean(axis=0) + pairs.mean()
    error = np.square(residuals).sum() / (count - 1)
    total = rows + error + 2 / count * (columns - error)
    return float((rows - error) / total) if total > 0 else float("nan")


def _region_difference(estimate: Floats, target: Floats, mask: Bools, context: Context) -> Floats:
    real = context.regions.means(target, mask)
    return 100 * (context.regions.means(estimate, mask) - real) / real


def _voxel_coverage(level: float) -> MetricFunction:
    def function(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
        """Share of the voxels of the mask whose value lies in their central interval."""
        return None if context.voxels is None else coverage(context.voxels, target[mask], level)

    return function


def _region_coverage(level: float) -> MetricFunction:
    def function(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
        """Share of the regions whose mean lies in its central interval."""
        distribution = context.region_means
        return None if distribution is None else coverage(distribution, context.regions.means(target, mask), level)

    return function


METRICS: dict[str, Metric] = {
    "mae": Metric(mae, "MAE", "target", "lower", digits=4),
    "attainable_error": Metric(attainable_error, "Distance from the attainable mean", "target", "lower", digits=4),
    "rmse": Metric(rmse, "RMSE", "target", "lower", digits=4),
    "psnr": Metric(psnr, "PSNR", "dB", "higher", digits=2, values="-∞ to ∞"),
    "ssim": Metric(ssim, "SSIM", "", "higher", values="-1 to 1"),
    "ms_ssim": Metric(ms_ssim, "MS-SSIM", "", "higher", values="0 to 1"),
    "pearson_r": Metric(pearson_r, "Pearson r", "", "higher", values="-1 to 1"),
    "region_r": Metric(region_r, "Region r", "", "higher", over="regions", values="-1 to 1"),
    "region_icc": Metric(region_icc, "Region ICC", "", "higher", over="regions", values="-1 to 1"),
    "region_mae": Metric(region_mae, "Region error", "%", "lower", digits=2, over="regions"),
    "region_bias": Metric(region_bias, "Region bias", "%", "ideal", 0.0, digits=2, over="regions", values="-∞ to ∞"),
    "ad_roi_error": Metric(ad_roi_error, "AD signature error", "%", "lower", digits=2, over="meta-regions"),
    "ad_roi_bias": Metric(
        ad_roi_bias, "AD signature bias", "%", "ideal", 0.0, digits=2, over="meta-regions", values="-∞ to ∞"
    ),
    "voxel_crps": Metric(voxel_crps, "Voxel CRPS", "target", "lower", digits=4, kind="distribution"),
    "region_crps": Metric(region_crps, "Region CRPS", "target", "lower", digits=4, kind="distribution", over="regions"),
    "energy_score": Metric(
        energy_score, "Energy score", "target", "lower", digits=4, kind="samples", over="regions", values="-∞ to ∞"
    ),
    "contrast_crps": Metric(
        contrast_crps, "Contrast CRPS", "target", "lower", digits=4, kind="samples", over="meta-regions"
    ),
    "bits_in_mask": Metric(
        bits_in_mask, "Bits in the mask", "bits/voxel", "lower", kind="density", values="-∞ to ∞", slack="bits_slack"
    ),
    "spread_error_r": Metric(spread_error_r, "Spread-error r", "", "higher", kind="distribution", values="-1 to 1"),
    "voxel_sharpness": Metric(voxel_sharpness, "Sharpness (mean SD)", "target", "lower", digits=4, kind="distribution"),
    "sample_diversity": Metric(sample_diversity, "Sample diversity", "", "ideal", 1.0, kind="samples", values="0 to 2"),
    "region_pit_distance": Metric(
        region_pit_distance, "Region PIT distance", "", "lower", kind="distribution", over="regions", values="0 to 0.5"
    ),
    **{
        f"voxel_coverage_{100 * level:.0f}": Metric(
            _voxel_coverage(level),
            f"Voxel coverage, {100 * level:.0f} % interval",
            "",
            "ideal",
            level,
            kind="distribution",
            values="0 to 1",
        )
        for level in LEVELS
    },
    **{
        f"region_coverage_{100 * level:.0f}": Metric(
            _region_coverage(level),
            f"Region coverage, {100 * level:.0f} % interval",
            "",
            "ideal",
            level,
            kind="distribution",
            over="regions",
            values="0 to 1",
        )
        for level in LEVELS
    },
}
