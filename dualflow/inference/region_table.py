"""Table of a scan's predicted regions and meta-regions: mean and 95 % interval, in the target's unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from dualflow.arrays import Bools, Doubles, Floats
from dualflow.imaging.atlas import merged_name, side
from dualflow.imaging.meta_regions import meta_region_weights, with_meta_regions
from dualflow.imaging.regions import RegionMap
from dualflow.inference.ensemble import Ensemble
from dualflow.inference.predict import Prediction

LEVEL = 0.95
FEW = 16
"""Number of samples below which the order of samples makes intervals too narrow."""
COLUMNS = {
    "region": "Name in the Desikan-Killiany atlas without hemisphere, or of a meta-region",
    "hemisphere": "left, right, or both for a meta-region",
    "voxels": "Voxels of the model grid",
    "mean": "Mean of the point estimate",
    "sd": "Standard deviation of the region's mean over joint samples",
    "low": f"Lower end of the {LEVEL:.0%} prediction interval; n/a for samples at a temperature other than 1",
    "high": f"Upper end of the {LEVEL:.0%} prediction interval; n/a for samples at a temperature other than 1",
}
"""Columns with their descriptions."""


def region_table(prediction: Prediction, mask: Bools, regions: RegionMap, *, temperature: float = 1.0) -> pd.DataFrame:
    """Regions, then meta-regions, with the columns COLUMNS; those without a voxel in the mask are left out.

    The interval is that of the samples, whose coverage evaluation reports. A model without a distribution has the
    standard deviation of its validation errors, and no interval of meta-regions.

    Args:
        prediction: on the model grid, with `region_samples` of these regions if the model has a distribution.
        mask: brain `[D, H, W]`.
        regions: the atlas on the model grid.
        temperature: of the samples; those of another one than 1 follow another law, and make no prediction interval.
    """
    groups, weights = meta_region_weights(regions, mask)
    point = with_meta_regions(regions.means(prediction.mean, mask), weights)
    sizes = regions.sizes(mask)
    if prediction.region_samples is not None:
        samples = with_meta_regions(prediction.region_samples, weights)
        sd = samples.std(axis=0, ddof=1)
        low, high = _interval(samples) if temperature == 1 else np.full((2, len(sd)), np.nan)
    else:
        known = prediction.region_std if prediction.region_std is not None else np.full(len(regions.names), np.nan)
        sd = np.concatenate([known, np.full(len(groups), np.nan)])
        half = ndtri((1 + LEVEL) / 2) * sd
        low, high = point - half, point + half
    table = pd.DataFrame(
        {
            "region": [*(merged_name(name) for name in regions.names), *groups],
            "hemisphere": [*(side(name) for name in regions.names), *("both" for _ in groups)],
            "voxels": [*sizes, *(weights > 0) @ sizes],
            "mean": point,
            "sd": sd,
            "low": low,
            "high": high,
        }
    )
    return table[table["voxels"] > 0].round(4).reset_index(drop=True)


def _interval(samples: Doubles) -> tuple[Floats, Floats]:
    """Ends `[R]` of the prediction interval of region means, from their joint samples `[S, R]`."""
    count = len(samples)
    if count >= FEW:
        return Ensemble(np.sort(samples, axis=0)).interval(LEVEL)
    # Student's interval for a new draw: the mean of `count` samples is itself uncertain.
    half = stdtrit(count - 1, (1 + LEVEL) / 2) * samples.std(axis=0, ddof=1) * np.sqrt(1 + 1 / count)
    return samples.mean(axis=0) - half, samples.mean(axis=0) + half
