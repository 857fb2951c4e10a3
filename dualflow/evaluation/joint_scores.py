"""Scores of the joint law of region means: energy score, a contrast of meta-regions, and the spread of a person.

Scores of one quantity at a time cannot tell a joint law from independent ones with the same margins. These can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scoringrules

from dualflow.arrays import Bools, Floats
from dualflow.evaluation.measures import Context, MetricFunction
from dualflow.imaging.regions import mean_of_known
from dualflow.inference.ensemble import Ensemble

META_REGIONS: dict[str, tuple[str, ...]] = {
    "posterior": (
        "precuneus", "posteriorcingulate", "isthmuscingulate", "inferiorparietal", "middletemporal", "inferiortemporal",
    ),
    "frontal": (
        "superiorfrontal", "rostralmiddlefrontal", "caudalmiddlefrontal", "lateralorbitofrontal", "medialorbitofrontal",
    ),
}  # fmt: skip
"""Cortical parcels of the Desikan-Killiany atlas in each meta-region, in both hemispheres.

FDG uptake of the posterior regions falls first in Alzheimer's disease (Landau et al. 2011), and that of the frontal
regions late, so their difference tells subtypes apart that share their mean uptake.
"""
AD_ROI = "AD signature"
"""Meta-region whose uptake falls first in Alzheimer's disease, from `imaging.meta_regions`."""
CONTRAST = ("posterior", "frontal")
"""The contrast is the mean of the first meta-region minus that of the second."""


def contrast(means: Floats, names: Sequence[str]) -> Floats:
    """Contrast `[...]` of the region means `[..., R]` of regions `names`; NaN if a meta-region has no finite mean."""
    first, second = (_meta_mean(means, names, META_REGIONS[group]) for group in CONTRAST)
    return np.asarray(first - second)


def energy_score(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Energy score of the vector of region means, unbiased for any number of samples; None without samples.

    It generalises the CRPS to vectors (Gneiting and Raftery 2007, eq. 22): `E|X - y| - E|X - X'| / 2`, with the
    Euclidean norm over the regions. Regions outside the mask are left out; NaN if all are.
    """
    if context.region_samples is None:
        return None
    truth = context.regions.means(target, mask)
    finite = np.isfinite(truth)
    if not finite.any():
        return float("nan")
    samples = context.region_samples[:, finite]
    return float(scoringrules.es_ensemble(truth[finite], samples, estimator="fair"))


def contrast_crps(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Continuous ranked probability score of the posterior minus frontal contrast; None without samples."""
    distribution, truth = _contrast(target, mask, context)
    return None if distribution is None else float(distribution.crps(truth)[0])


def contrast_pit(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Probability integral transform of the contrast: uniform over scans if the predicted law is right."""
    distribution, truth = _contrast(target, mask, context)
    return None if distribution is None else float(distribution.pit(truth)[0])


def person_spread(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Root mean square over the regions of the predicted standard deviation; None without a spread of regions."""
    return None if context.region_std is None else _rms(context.region_std)


def person_error(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Root mean square over the regions of the error of the estimate; None without a spread of regions."""
    if context.region_std is None:
        return None
    return _rms(context.regions.means(estimate, mask) - context.regions.means(target, mask))


def ad_roi_estimate(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Estimated mean of the AD signature region."""
    return context.meta_region_mean(AD_ROI, estimate, mask)


def ad_roi_real(estimate: Floats, target: Floats, mask: Bools, context: Context) -> float | None:
    """Real mean of the AD signature region."""
    return context.meta_region_mean(AD_ROI, target, mask)


PERSON_VALUES: dict[str, MetricFunction] = {
    "ad_roi_estimate": ad_roi_estimate,
    "ad_roi_real": ad_roi_real,
    "contrast_pit": contrast_pit,
    "person_spread": person_spread,
    "person_error": person_error,
}
"""Values of one scan that are no scores by themselves; STUDY_METRICS summarises them over people."""


def _contrast(target: Floats, mask: Bools, context: Context) -> tuple[Ensemble | None, Floats]:
    """Predicted distribution of the contrast and its real value `[1]`; None if either is unknown."""
    names, truth = context.regions.names, context.regions.means(target, mask)
    real = contrast(truth[None], names)
    if context.region_samples is None or not np.isfinite(real).all():
        return None, real
    return Ensemble(np.sort(contrast(context.region_samples, names))[:, None]), real


def _meta_mean(means: Floats, names: Sequence[str], parcels: Sequence[str]) -> Floats:
    members = [index for index, name in enumerate(names) if name.split("-")[-1] in parcels]
    values = means[..., members]
    finite = np.isfinite(values)
    count = finite.sum(axis=-1)
    total = np.where(finite, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _rms(values: Floats) -> float:
    return float(np.sqrt(mean_of_known(np.square(values))))
