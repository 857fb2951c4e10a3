"""Table of a scan's predicted regions and meta-regions: mean and 95 % interval, in the target's unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from dualflow.arrays import Bools
from dualflow.imaging.atlas import merged_name, side
from dualflow.imaging.meta_regions import meta_region_weights, with_meta_regions
from dualflow.imaging.regions import RegionMap
from dualflow.inference.predict import Prediction

LEVEL = 0.95
COLUMNS = {
    "region": "Name in the Desikan-Killiany atlas without hemisphere, or of a meta-region",
    "hemisphere": "left, right, or both for a meta-region",
    "voxels": "Voxels of the model grid",
    "mean": "Mean of the point estimate",
    "sd": "Standard deviation of the region's mean over joint samples",
    "low": f"Lower end of the {LEVEL:.0%} prediction interval",
    "high": f"Upper end of the {LEVEL:.0%} prediction interval",
}
"""Columns with their descriptions."""


def region_table(prediction: Prediction, mask: Bools, regions: RegionMap) -> pd.DataFrame:
    """Regions, then meta-regions, with the columns COLUMNS; those without a voxel in the mask are left out.

    The interval is centred at the mean of the samples. A model without a distribution has the standard deviation of
    its validation errors, and no interval of meta-regions.

    Args:
        prediction: on the model grid, with `region_samples` of these regions if the model has a distribution.
        mask: brain `[D, H, W]`.
        regions: the atlas on the model grid.
    """
    groups, weights = meta_region_weights(regions, mask)
    point = with_meta_regions(regions.means(prediction.mean, mask), weights)
    sizes = regions.sizes(mask)
    if prediction.region_samples is not None:
        samples = with_meta_regions(prediction.region_samples, weights)
        count = len(samples)
        centre, sd = samples.mean(axis=0), samples.std(axis=0, ddof=1)
        # The mean of `count` samples is itself uncertain.
        half = t.ppf((1 + LEVEL) / 2, count - 1) * sd * np.sqrt(1 + 1 / count)
    else:
        known = prediction.region_std if prediction.region_std is not None else np.full(len(regions.names), np.nan)
        centre, sd = point, np.concatenate([known, np.full(len(groups), np.nan)])
        half = norm.ppf((1 + LEVEL) / 2) * sd
    table = pd.DataFrame(
        {
            "region": [*(merged_name(name) for name in regions.names), *groups],
            "hemisphere": [*(side(name) for name in regions.names), *("both" for _ in groups)],
            "voxels": [*sizes, *(weights > 0) @ sizes],
            "mean": point,
            "sd": sd,
            "low": centre - half,
            "high": centre + half,
        }
    )
    return table[table["voxels"] > 0].round(4).reset_index(drop=True)
