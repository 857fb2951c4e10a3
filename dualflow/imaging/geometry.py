"""Grids, affines and the interpolation between them.

All affines and maps are 4x4 float64 in RAS+ millimetres, as nibabel has them. A *points map* from A to B takes a world
point of image A to the world point of image B that shows the same anatomy. SimpleITK works in LPS+; images are
converted in this module. SimpleITK opens no file, so only nibabel interprets headers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dualflow.arrays import Singles

Points = NDArray[np.floating[Any]]
Affine = NDArray[np.floating[Any]]
Grid = tuple[Affine, tuple[int, int, int]]

# Below this ratio of spacings the Gaussian is far narrower than a voxel.
COARSENING = 1.1
FWHM = float(np.sqrt(8 * np.log(2)))
"""Full width at half maximum of a Gaussian, in standard deviations."""
# Sums over several threads are not reproducible; with one thread, equal scans give equal bytes.
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

_NEGLIGIBLE = 1e-12
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_INTERPOLATORS = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}


@dataclass(frozen=True)
class Volume:
    """Voxels with their affine.

    Attributes:
        array: `[I, J, K]` float32 in the file's own axis order.
        affine: voxel index to world (RAS+ mm).
        path: the file it was read from, or a name.
    """

    array: Singles
    affine: Affine
    path: Path = Path("volume")

    @property
    def grid(self) -> Grid:
        """Affine and shape."""
        i, j, k = self.array.shape
        return self.affine, (i, j, k)


def smooth(volume: Volume, fwhm_mm: float) -> Volume:
    """Smooth a volume by a Gaussian of this full width at half maximum; a width of 0 mm changes nothing."""
    if not fwhm_mm:
        return volume
    sigma = fwhm_mm / FWHM / voxel_sizes(volume.affine)
    return replace(volume, array=gaussian_filter(volume.array, sigma, mode="nearest"))


def ras_orders(affine: Affine) -> tuple[NDArray[Any], NDArray[Any]]:
    """The orders of axes for `nib.apply_orientation` that make a grid's axes point right, forwards and up, and back."""
    to_ras = nib.io_orientation(affine)
    return to_ras, nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), to_ras)


def corners(affine: Affine, shape: tuple[int, int, int]) -> Points:
    """World points `[8, 3]` of the centres of the corner voxels."""
    indices = np.array(list(product(*((0, size - 1) for size in shape))), dtype=np.float64)
    return np.asarray(apply_affine(affine, indices))


def corner_distance(first: Affine, second: Affine, shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between the places that two affines give to the same corner."""
    return float(np.linalg.norm(corners(first, shape) - corners(second, shape), axis=1).max())


def centred_affine(centre: Points, spacing: float, shape: tuple[int, int, int]) -> Affine:
    """Affine of an isotropic RAS-aligned grid centred on the world point `centre`."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = centre - spacing * (np.array(shape) - 1) / 2
    return affine


def _entries(matrix: Affine) -> list[float]:
    """Entries of a matrix for SimpleITK."""
    # With entries such as 1e-300 ITK's inversion fails silently, and the resampled image is background.
    entries: list[float] = np.where(np.abs(matrix) < _NEGLIGIBLE, 0, matrix).ravel().tolist()
    return entries


def to_sitk(array: NDArray[np.generic], affine: Affine) -> sitk.Image:
    """Voxels `[I, J, K]` and their RAS affine as a SimpleITK image."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    spacing, lps = voxel_sizes(affine), _LPS @ affine
    image.SetSpacing(spacing.tolist())
    image.SetDirection(_entries(lps[:3, :3] / spacing))
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def from_sitk(image: sitk.Image) -> tuple[NDArray[np.generic], Affine]:
    """Voxels `[I, J, K]` and RAS affine of a SimpleITK image."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), _LPS @ lps


def shrink(volume: Volume, spacing: float) -> sitk.Image:
    """Average blocks of voxels to about `spacing` mm; at least two voxels remain along each axis."""
    edges = zip(voxel_sizes(volume.affine), volume.array.shape, strict=True)
    factors = [max(1, min(round(spacing / edge), size // 2)) for edge, size in edges]
    return sitk.BinShrink(to_sitk(volume.array, volume.affine), factors)


def to_transform(points_map: Affine) -> sitk.AffineTransform:
    """A RAS points map as SimpleITK's transform of LPS points."""
    lps = _LPS @ points_map @ _LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(_entries(lps[:3, :3]))
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def from_transform(transform: sitk.Transform) -> Affine:
    """SimpleITK's linear transform of LPS points as a RAS points map."""
    lps = np.eye(4)
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    lps[:3, :3] = np.stack([transform.TransformPoint(tuple(axis)) - origin for axis in np.eye(3)], axis=1)
    lps[:3, 3] = origin
    return np.asarray(_LPS @ lps @ _LPS)


def resample(
    volume: Volume,
    affine: Affine,
    shape: tuple[int, int, int],
    points_map: Affine | None = None,
    order: int = 1,
    background: float = 0.0,
) -> Singles:
    """Interpolate `volume` once, onto the grid given by `affine` and `shape`.

    Along each axis on which the new grid is coarser, a Gaussian with a full width at half maximum of
    sqrt(new^2 - old^2) prevents aliasing (Cardoso et al., MICCAI 2015). Labels (`order=0`) are never smoothed.

    Args:
        volume: the image.
        affine: grid of the result.
        shape: size of the result.
        points_map: world of the *result* to world of `volume`; None is the identity.
        order: 0 nearest, 1 linear, 3 cubic B-spline.
        background: value outside the volume.
    """
    points_map = np.eye(4) if points_map is None else points_map
    array = np.asarray(volume.array, dtype=np.float32)
    if order:
        step = np.linalg.inv(volume.affine) @ points_map @ affine
        ratio = np.linalg.norm(step[:3, :3], axis=1)
        if (ratio > COARSENING).any():
            sigma = np.where(ratio > COARSENING, np.sqrt(np.maximum(ratio**2 - 1, 0)) / FWHM, 0)
            array = gaussian_filter(array, sigma, mode="nearest", truncate=3)
    spacing, lps = voxel_sizes(affine), _LPS @ affine
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(_INTERPOLATORS[order])
    resampler.SetDefaultPixelValue(background)
    resampler.SetTransform(to_transform(points_map))
    resampler.SetSize(list(shape))
    resampler.SetOutputSpacing(spacing.tolist())
    resampler.SetOutputDirection(_entries(lps[:3, :3] / spacing))
    resampler.SetOutputOrigin(lps[:3, 3].tolist())
    result, _ = from_sitk(resampler.Execute(to_sitk(array, volume.affine)))
    return np.ascontiguousarray(result, dtype=np.float32)
