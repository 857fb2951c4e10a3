"""Region means of the test people: real and synthetic, with readable names and meta-regions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from dualflow.arrays import Floats
from dualflow.imaging.atlas import short_name, side
from dualflow.imaging.meta_regions import meta_region_weights
from dualflow.imaging.regions import RegionMap


@dataclass(frozen=True)
class RegionMeans:
    """Region means of one model.

    Attributes:
        scans: keys of the N scans.
        regions: names of the R regions in the atlas.
        real: means of the real images `[N, R]`, NaN where a region has no voxel.
        synthetic: means of the synthetic images `[N, R]`, NaN where the real one is unknown.
    """

    scans: tuple[str, ...]
    regions: tuple[str, ...]
    real: Floats
    synthetic: Floats

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Self:
        """Read the table of an evaluation: columns `scan`, `region`, `real` and `estimate`."""
        wide = table.pivot(index="scan", columns="region", values=["real", "estimate"])
        regions, real = tuple(map(str, wide["real"].columns)), wide["real"].to_numpy()
        # A mean over regions is that of the same ones in both images.
        synthetic = np.where(np.isnan(real), np.nan, wide["estimate"].to_numpy())
        return cls(tuple(map(str, wide.index)), regions, real, synthetic)

    def errors(self) -> Floats:
        """Signed errors `[N, R]` in % of the real mean; positive is too high."""
        return 100 * (self.synthetic - self.real) / self.real

    def worst(self, count: int) -> list[int]:
        """Positions of the `count` regions with the largest mean absolute error, the largest first."""
        sizes = np.array([np.nanmean(column) if np.isfinite(column).any() else -1.0 for column in abs(self.errors()).T])
        order = np.argsort(-sizes, kind="stable")[:count]
        return [int(index) for index in order if sizes[index] >= 0]

    def meta_regions(self, atlas: RegionMap) -> dict[str, tuple[Floats, Floats]]:
        """Real and synthetic mean `[N]` over the voxels of each meta-region that has a region in the atlas.

        NaN for a scan that lacks one of its regions, unless all scans do.
        """
        names, weights = meta_region_weights(atlas, atlas.labels > 0)
        columns = [atlas.names.index(region) for region in self.regions]
        return {
            name: (_weighted_mean(self.real, row), _weighted_mean(self.synthetic, row))
            for name, row in zip(names, weights[:, columns], strict=True)
            if np.nansum(row) > 0
        }


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Weighted mean `[N]` of values `[N, R]`; NaN where one is unknown that others have.

    The level of the other regions alone would say which people lack one.
    """
    members = (weights > 0) & np.isfinite(values).any(axis=0)
    if not members.any():
        return np.full(len(values), np.nan)
    return np.asarray(np.average(values[:, members], axis=1, weights=weights[members]))


_SPACED = ("inferior", "superior", "middle", "posterior", "anterior", "rostral", "caudal", "lateral", "medial",
           "transverse", "isthmus", "pars")  # fmt: skip
"""Parts of the compound names of parcels after which a space makes them readable."""


def readable(name: str) -> str:
    """Readable name of a region: `ctx-lh-inferiortemporal` -> `inferior temporal, left`."""
    base = short_name(name).replace("-", " ").lower()
    base = re.sub(rf"({'|'.join(_SPACED)})(?=[a-z]{{4,}})", r"\1 ", base)
    hemisphere = side(name)
    return base + (f", {hemisphere}" if hemisphere else "")
