"""The brain mask, from deepbet (Fisch et al., 2024) or the study itself, and the check of its size and shape."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from dualflow.arrays import Bools
from dualflow.errors import GeometryError, IntensityError
from dualflow.imaging.geometry import Volume, corners, ras_orders, resample
from dualflow.imaging.mask_qc import MaskShape, check_metrics, measure_shape
from dualflow.imaging.volume import read_volume

if TYPE_CHECKING:
    from deepbet.bet import BrainExtraction

VOLUME_ML = (600.0, 2500.0)
EXTENT_MM = (80.0, 230.0)
# Compared with the network's native 256^3 on raw clinical scans: Dice 0.99 in less than half the time.
WORKING_SHAPE = (192, 192, 192)
# Tolerance in voxels between the corners of a mask and of its scan, for the rounding of their headers.
GRID_VOXELS = 0.1


@cache
def _extractor() -> BrainExtraction:
    """The two networks, loaded once per process from the package's own files."""
    from deepbet.bet import BrainExtraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return BrainExtraction(no_gpu=True)


def brain_mask(volume: Volume) -> tuple[Bools, MaskShape]:
    """Extract the brain of a head scan by deepbet.

    Returns:
        The mask `[I, J, K]`, one connected region without holes, and its shape metrics.

    Raises:
        IntensityError: no brain is found, or the mask does not have the size and shape of a brain.
    """
    extractor = _extractor()
    to_ras, from_ras = ras_orders(volume.affine)
    head = np.ascontiguousarray(nib.apply_orientation(volume.array, to_ras), dtype=np.float32)
    try:
        mask = extractor.postprocess(extractor.run_model(head, shape=WORKING_SHAPE) > 0.5)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise IntensityError(
            f"{volume.path}: no brain is found in it; check that it is a scan of a whole head"
        ) from error
    result = np.ascontiguousarray(nib.apply_orientation(mask, from_ras), dtype=bool)
    return result, check_mask(result, volume)


def study_mask(path: Path, volume: Volume) -> tuple[Bools, MaskShape]:
    """Read a brain mask of the study, already verified; its axes may be in any order.

    Returns:
        The mask `[I, J, K]` on the scan's grid, and its shape metrics.

    Raises:
        GeometryError: it is not on the scan's grid.
        IntensityError: it is not a mask, or does not have the size and shape of a brain.
        DataError: the file cannot be used; the subclass says why.
    """
    image = read_volume(path, verified=True)
    scan_corners = corners(np.linalg.inv(image.affine) @ volume.affine, volume.grid[1])
    distances = np.abs(scan_corners[:, None] - corners(np.eye(4), image.grid[1])).max(axis=-1)
    if (gap := max(distances.min(axis=0).max(), distances.min(axis=1).max())) > GRID_VOXELS:
        raise GeometryError(
            f"{path}: its corners lie {gap:.1f} voxels from those of {volume.path.name}, expected the same grid; "
            "interpolate the mask onto the scan's grid (nearest neighbour)"
        )
    values = np.unique(image.array)
    if len(values) != 2 or values[0] != 0:
        raise IntensityError(
            f"{path}: holds {len(values)} values from {values[0]:g} to {values[-1]:g}, expected 0 outside the brain "
            "and one other value in it; threshold it, or pick its label"
        )
    mask = resample(image, *volume.grid, order=0) > 0
    return mask, check_mask(mask, replace(volume, path=path))


def brain_volume_ml(mask: Bools, volume: Volume) -> float:
    """Volume of a mask in millilitres."""
    return float(mask.sum() * np.prod(voxel_sizes(volume.affine)) / 1000)


def check_mask(mask: Bools, volume: Volume) -> MaskShape:
    """Check that a mask has the size and shape of a brain; return its shape metrics.

    Raises:
        IntensityError: its volume, one of its extents or a shape metric is out of range.
    """
    size = brain_volume_ml(mask, volume)
    if not VOLUME_ML[0] <= size <= VOLUME_ML[1]:
        raise IntensityError(
            f"{volume.path}: the brain found in it has {size:.0f} ml, expected {VOLUME_ML[0]:.0f} to "
            f"{VOLUME_ML[1]:.0f} ml; check that the scan shows a whole head and that its voxel size is right"
        )
    extent = [
        float(np.ptp(np.flatnonzero(mask.any(axis=tuple(set(range(3)) - {axis})))) + 1) * edge
        for axis, edge in enumerate(voxel_sizes(volume.affine))
    ]
    if min(extent) < EXTENT_MM[0] or max(extent) > EXTENT_MM[1]:
        raise IntensityError(
            f"{volume.path}: the brain found in it measures {[round(edge) for edge in extent]} mm, expected "
            f"{EXTENT_MM[0]:.0f} to {EXTENT_MM[1]:.0f} mm along each axis; check its field of view and voxel size"
        )
    shape = measure_shape(mask, volume.affine)
    check_metrics(shape, volume.path)
    return shape
