"""Meta-regions: bilateral groups of atlas regions, such as lobes, listed in `meta_regions.tsv`.

`AD signature` approximates the meta-ROI of Landau et al. (2011), Associations between cognitive, functional, and
FDG-PET measures of decline in AD and MCI, Neurobiology of Aging 32:1207-1218, by parcels of Desikan-Killiany: angular
gyrus, posterior cingulate and inferior temporal gyrus.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.imaging.atlas import merged_name
from dualflow.imaging.geometry import BoolArray
from dualflow.imaging.regions import RegionMap


@cache
def meta_regions() -> dict[str, tuple[str, ...]]:
    """Regions without hemisphere or the prefix `ctx-`, by meta-region."""
    with (files("dualflow.imaging") / "meta_regions.tsv").open() as file:
        table = pd.read_csv(file, sep="\t")
    return {str(name): tuple(rows["region"]) for name, rows in table.groupby("meta_region", sort=False)}


def meta_region_weights(regions: RegionMap, mask: BoolArray) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Names of the M meta-regions, and weights `[M, R]` that turn region means into the mean over all their voxels.

    Regions without a voxel in the mask `[D, H, W]` have weight 0; a meta-region without any is all NaN.
    """
    merged = [merged_name(name).removeprefix("ctx-") for name in regions.names]
    members = np.array([[name in group for name in merged] for group in meta_regions().values()], dtype=np.float64)
    weights = members * regions.sizes(mask)
    totals = weights.sum(axis=1, keepdims=True)
    totals[totals == 0] = np.nan
    return tuple(meta_regions()), weights / totals
