"""Meta-regions: bilateral groups of atlas regions, such as lobes, listed in `meta_regions.tsv`.

`AD signature` approximates the meta-ROI of Landau et al. (2011), Associations between cognitive, functional, and
FDG-PET measures of decline in AD and MCI, Neurobiology of Aging 32:1207-1218, by parcels of Desikan-Killiany: angular
gyrus, posterior cingulate and inferior temporal gyrus.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd

from dualflow.arrays import Bools, Doubles
from dualflow.imaging.atlas import short_name
from dualflow.imaging.regions import RegionMap

MetaRegions = dict[str, tuple[str, ...]]
"""Regions without hemisphere or the prefix `ctx-`, by meta-region."""


@cache
def meta_regions() -> MetaRegions:
    """The built-in meta-regions."""
    with (files("dualflow.imaging") / "meta_regions.tsv").open() as file:
        return group_regions(pd.read_csv(file, sep="\t"))


def group_regions(table: pd.DataFrame) -> MetaRegions:
    """Meta-regions of a table with the columns `meta_region` and `region`."""
    return {str(name): tuple(rows["region"]) for name, rows in table.groupby("meta_region", sort=False)}


def meta_region_weights(
    regions: RegionMap, mask: Bools, groups: MetaRegions | None = None
) -> tuple[tuple[str, ...], Doubles]:
    """Names of the M meta-regions, and weights `[M, R]` that turn region means into the mean over all their voxels.

    Regions without a voxel in the mask `[D, H, W]` have weight 0; a meta-region without any is all NaN.

    Args:
        regions: the atlas on a grid.
        mask: the voxels that count.
        groups: meta-regions; by default the built-in ones.
    """
    groups = meta_regions() if groups is None else groups
    weights = meta_region_members(regions.names, groups) * regions.sizes(mask)
    totals = weights.sum(axis=1, keepdims=True)
    totals[totals == 0] = np.nan
    return tuple(groups), weights / totals


def meta_region_members(names: Sequence[str], groups: MetaRegions) -> Doubles:
    """Return 1 where a region of the atlas belongs to a meta-region, else 0, `[M, R]`."""
    merged = [short_name(name) for name in names]
    return np.array([[name in group for name in merged] for group in groups.values()], dtype=np.float64)


def with_meta_regions(means: Doubles, weights: Doubles) -> Doubles:
    """Append the means of the meta-regions with `weights` `[M, R]` to region means `[..., R]`."""
    return np.concatenate([means, np.nan_to_num(means) @ weights.T], axis=-1)
