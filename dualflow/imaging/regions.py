"""Grey-matter regions of the Desikan-Killiany atlas on the model grid, and region means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles, Floats, Singles
from dualflow.config import PreprocessConfig
from dualflow.errors import ShapeError
from dualflow.imaging.atlas import desikan_killiany, short_name
from dualflow.imaging.intensity import in_view
from dualflow.imaging.model_grid import model_grid

MINIMUM_VOXELS = 5
MINIMUM_SHOWN = 0.9
"""Share of a region that the field of view must hold for a measured mean."""
# FreeSurfer names of the cortical parcels and the subcortical grey-matter structures.
GREY_MATTER = re.compile(
    r"ctx-[lr]h-(?!unknown)\w+"
    r"|(Left|Right)-(Cerebellum-Cortex|Thalamus(-Proper)?|Caudate|Putamen|Pallidum|Hippocampus|Amygdala|Accumbens-area)"
)


@dataclass(frozen=True)
class RegionMap:
    """Regions as integer labels on a grid.

    Attributes:
        labels: `[D, H, W]`; 0 is background, r + 1 is region `names[r]`.
        names: names of the R regions, separate for each hemisphere.
        voxel_mm: edge lengths of a voxel in mm.
    """

    labels: NDArray[np.integer]
    names: tuple[str, ...]
    voxel_mm: tuple[float, float, float]

    def sizes(self, mask: Bools) -> NDArray[np.int64]:
        """Number of voxels of each region in `mask` `[D, H, W]`, as `[R]`."""
        return np.bincount(self.labels[mask], minlength=len(self.names) + 1)[1:]

    def means(self, volume: Singles, mask: Bools) -> Doubles:
        """Mean of `volume` `[..., D, H, W]` over each region's voxels in `mask` `[D, H, W]`, as `[..., R]`.

        A region without a voxel in the mask is NaN.

        Raises:
            ShapeError: the volume or the mask is not on the regions' grid.
        """
        grid = self.labels.shape
        if volume.shape[-3:] != grid or mask.shape != grid:
            raise ShapeError(
                f"volume {volume.shape} and mask {mask.shape} do not lie on the regions' grid {grid}; "
                "build the region map from the study's preprocess section"
            )
        voxels = np.flatnonzero((self.labels > 0) & mask)
        region = self.labels.reshape(-1)[voxels] - 1
        values = volume.reshape(-1, mask.size)[:, voxels]
        rows, count = len(values), len(self.names)
        bins = (np.arange(rows)[:, None] * count + region).reshape(-1)
        sums = np.bincount(bins, weights=values.reshape(-1), minlength=rows * count).reshape(rows, count)
        sizes = np.bincount(region, minlength=count).astype(np.float64)
        sizes[sizes == 0] = np.nan
        return (sums / sizes).reshape(*volume.shape[:-3], count)

    def measured_means(self, target: Singles, mask: Bools) -> Doubles:
        """`means` of a measured target `[D, H, W]` over the voxels that it shows, `[R]`.

        A region of which it shows less than MINIMUM_SHOWN is NaN.
        """
        shown = in_view(target, mask)
        return self.measured(shown, mask).means(target, shown)

    def measured(self, shown: Bools, mask: Bools) -> RegionMap:
        """This map without the voxels of regions of which `shown` holds less than MINIMUM_SHOWN of those in `mask`."""
        with np.errstate(invalid="ignore"):
            is_measured = self.sizes(shown) / self.sizes(mask) >= MINIMUM_SHOWN
        return replace(self, labels=np.where(np.r_[True, is_measured][self.labels], self.labels, 0))


def mean_of_known(values: Floats) -> float:
    """Mean of the entries that are not NaN; NaN without any, as of the regions of a mask that holds none."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def region_map(config: PreprocessConfig) -> RegionMap:
    """Resample the atlas's grey-matter regions to the model grid; regions below MINIMUM_VOXELS are dropped."""
    atlas, names = desikan_killiany()
    affine, shape = model_grid(config)
    nearest = resample_from_to(atlas, (shape, affine), order=0)
    return from_labels(np.asarray(nearest.dataobj).astype(np.int32), names, (config.spacing_mm,) * 3)


def grey_matter_names() -> set[str]:
    """Names of grey-matter regions as tables of meta-regions have them, without hemisphere and the prefix `ctx-`."""
    names = desikan_killiany()[1].values()
    return {short_name(name) for name in names if GREY_MATTER.fullmatch(name)}


def from_labels(
    labels: NDArray[np.integer], names: Mapping[int, str], voxel_mm: tuple[float, float, float]
) -> RegionMap:
    """Number the grey-matter regions of the atlas `labels` `[D, H, W]` from 1 in the order of the atlas."""
    sizes = np.bincount(labels.reshape(-1), minlength=max(names, default=0) + 1)
    selected = [
        label for label in sorted(names) if GREY_MATTER.fullmatch(names[label]) and sizes[label] >= MINIMUM_VOXELS
    ]
    renumber = np.zeros(len(sizes), np.int32)
    renumber[selected] = np.arange(1, len(selected) + 1)
    return RegionMap(renumber[labels], tuple(names[label] for label in selected), voxel_mm)
