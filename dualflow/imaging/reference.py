"""The reference region of SUVR on the model grid.

A region comes from the installed Desikan-Killiany atlas with the labels of FreeSurfer's aseg, or is a mask of the study
in template space. Atlas regions are eroded, so that spill-over from neighbouring tissue and the residual error of an
affine registration do not affect the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy.ndimage import distance_transform_edt, find_objects

from dualflow.arrays import Bools, Singles
from dualflow.digests import sha256
from dualflow.errors import IntensityError
from dualflow.imaging.atlas import desikan_killiany, merged_name
from dualflow.imaging.geometry import Grid, Volume, resample
from dualflow.imaging.volume import read_volume
from dualflow.modalities import REFERENCES

ERODE_MM = 3.0
"""Half the resolution (FWHM) of a usual PET scanner; on a grid coarser than twice this, half a voxel."""
SHARE = 0.5
"""Smallest share of a voxel inside an atlas region, and threshold of a study's mask."""
MIN_VOXELS = 20
PONS_Z = (-48.0, -20.0)
"""MNI z of the pontomedullary and the pontomesencephalic sulcus, between which the brain stem is pons.

Both are visible in the atlas's Brain-Stem label. Going up, its anterior border moves forward from y = -31 to -22 at
z = -51 to -47, where the pons begins, and back from y = -15 to -21 at z = -20, where it ends. Clinica's eroded mask of
the pons spans z = -38 to -28 (Routier et al. 2021, Frontiers in Neuroinformatics 15:689675).
"""
WHOLE_BRAIN = "brain"
_MARGIN = 8


@dataclass(frozen=True)
class Reference:
    """A reference region of one scan.

    Attributes:
        mask: `[D, H, W]` on the model grid.
        record: name, number of voxels and share within the field of view, for the scan's intensity record.
    """

    mask: Bools
    record: dict[str, Any]


def reference_region(name: str, grid: Grid, brain: Bools, in_view: Bools, image: Path) -> Reference:
    """Return the reference region within the brain and the field of view of a PET.

    Args:
        name: a key of REFERENCES (`brain` is the whole brain), or the path of a mask in template space.
        grid: affine and shape of the model grid, which lies in template space.
        brain: brain mask `[D, H, W]` of the scan on that grid.
        in_view: voxels `[D, H, W]` in the PET's field of view.
        image: the PET's path in errors.

    Raises:
        IntensityError: the PET shows too few voxels of the region on this grid.
        DataError: the atlas or the mask cannot be read; the subclass gives the reason.
    """
    region = brain if name == WHOLE_BRAIN else reference_mask(name, grid) & brain
    record: dict[str, Any] = {"reference_region": name}
    if name not in REFERENCES:  # folders are left out because they may name people
        record = {"reference_region": Path(name).name, "reference_sha256": sha256(Path(name))}
    mask = region & in_view
    count = int(mask.sum())
    if count < MIN_VOXELS:
        raise IntensityError(
            f"{image}: shows {count} voxels of reference region '{record['reference_region']}' on the grid of "
            f"{voxel_sizes(grid[0])[0]:g} mm, expected at least {MIN_VOXELS}; choose a larger region, a finer grid, or "
            "check the field of view"
        )
    return Reference(mask, record | {"reference_voxels": count, "reference_shown": round(count / int(region.sum()), 4)})


def reference_mask(name: str, grid: Grid) -> Bools:
    """Voxels `[D, H, W]` of a grid in template space that belong to a reference region.

    Raises:
        DataError: the atlas or the mask cannot be read; the subclass gives the reason.
    """
    affine, shape = grid
    if name in REFERENCES:
        region = _eroded(name, max(ERODE_MM, float(voxel_sizes(affine).max()) / 2))
    else:
        mask = read_volume(Path(name))
        region = Volume((mask.array >= SHARE).astype(np.float32), mask.affine, mask.path)
    return np.asarray(resample(region, affine, shape) >= SHARE)


@cache
def _eroded(name: str, depth_mm: float) -> Volume:
    """The part of an atlas region deeper than `depth_mm`, cropped to its surroundings."""
    image, _ = desikan_killiany()
    inside = _region(name)
    (box,) = find_objects(inside.astype(np.uint8))
    window = tuple(slice(max(0, part.start - _MARGIN), part.stop + _MARGIN) for part in box)
    depth = distance_transform_edt(np.pad(inside[window], 1), sampling=voxel_sizes(image.affine))[1:-1, 1:-1, 1:-1]
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in window]
    core: Singles = (depth > depth_mm).astype(np.float32)
    return Volume(core, affine, Path(name))


def _region(name: str) -> Bools:
    """The whole region on the atlas's own grid."""
    image, names = desikan_killiany()
    labels = np.asarray(image.dataobj)
    structures = REFERENCES[name]
    inside = np.isin(labels, [label for label, label_name in names.items() if merged_name(label_name) in structures])
    if "Pons" in structures:
        z = image.affine[2, 3] + image.affine[2, 2] * np.arange(labels.shape[2])
        stem = next(label for label, label_name in names.items() if label_name == "Brain-Stem")
        inside |= (labels == stem) & ((z > PONS_Z[0]) & (z < PONS_Z[1]))
    return np.asarray(inside)
