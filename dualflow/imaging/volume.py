"""NIfTI in and out: the header gate first, then a look at every voxel, then the array.

The look goes through the file in small pieces and keeps none: a file that is cut short, damaged, not finite or all the
same costs a few MiB to refuse, however large it is or claims to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dualflow.commit import commit_json, committing
from dualflow.errors import HeaderError, IntensityError
from dualflow.imaging.affines import resolve_affine
from dualflow.imaging.geometry import Affine, FloatArray, Volume, corner_distance
from dualflow.imaging.nifti_header import SLACK, NiftiInfo, check_header
from dualflow.imaging.nifti_stream import opened

__all__ = ["Volume", "check_scan", "read_volume", "write_volume"]

_SCANNER = 1
_PIECE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)
_QUATERNION_MM = 0.005


def read_volume(path: Path, *, dimensions: int = 3) -> Volume:
    """Read one scan as float32 with the affine that the header's two forms agree on.

    Trailing axes of length 1 beyond `dimensions` are dropped.

    Raises:
        HeaderError: the file is not NIfTI, is cut short, claims too much memory, or has other dimensions.
        GeometryError: its place in the world cannot be trusted.
        IntensityError: its voxels are not finite, or all the same.
    """
    gate = check_header(path, dimensions)
    i, j, k = gate.shape[:3]
    affine = resolve_affine(gate.header, (i, j, k), gate.path)
    _check_contrast(gate)
    array, start = np.empty(math.prod(gate.shape), dtype=np.float32), 0
    for piece in stored_voxels(gate):
        array[start : start + piece.size] = real_voxels(piece, gate)
        start += piece.size
    return Volume(array.reshape(gate.shape, order="F"), affine, gate.path)


def check_scan(path: Path) -> None:
    """Refuse an image of one or more frames by its header and place, and by its voxels where it is a single frame.

    Nothing is kept, so that all files of a scan can be looked at before the long work on the first of them begins.

    Raises:
        HeaderError: as `read_volume`.
        GeometryError: as `read_volume`.
        IntensityError: as `read_volume`.
    """
    gate = check_header(path, 4, series=True)
    i, j, k = gate.shape[:3]
    resolve_affine(gate.header, (i, j, k), gate.path)
    if len(gate.shape) == 3:
        _check_contrast(gate)


def stored_voxels(gate: NiftiInfo, size: int = _PIECE) -> Iterator[NDArray[np.generic]]:
    """The voxels as the file stores them, `size` at a time, in its order; then the rest of it, up to its checksum.

    Raises:
        HeaderError: the file cannot be read, or is shorter or much longer than its header says.
    """
    with opened(gate.path, compressed=gate.compressed) as stream:
        stream.read(gate.offset)
        left = math.prod(gate.shape)
        while left:
            data = stream.read(min(size, left) * gate.dtype.itemsize)
            if len(data) < min(size, left) * gate.dtype.itemsize:
                raise HeaderError(
                    f"{gate.path}: ends before the {gate.length} bytes that its header declares; it is cut short: "
                    "copy it again"
                )
            left -= min(size, left)
            yield np.frombuffer(data, gate.dtype)
        if len(stream.read(SLACK + 1)) > SLACK:
            raise HeaderError(
                f"{gate.path}: unpacks to more than the {gate.length} bytes its header declares; copy it again"
            )


def real_voxels(stored: NDArray[np.generic], gate: NiftiInfo) -> FloatArray:
    """Stored values in the image's unit, by the header's slope and intercept."""
    values = stored.astype(np.float32)
    if (gate.slope, gate.intercept) != (1.0, 0.0):
        values *= np.float32(gate.slope)
        values += np.float32(gate.intercept)
    return values


def value_range(stored: NDArray[np.generic]) -> tuple[float, float]:
    """Least and largest of some stored values; NaN where there is one among them."""
    with np.errstate(invalid="ignore"):
        return float(stored.min()), float(stored.max())


def check_range(low: float, high: float, gate: NiftiInfo) -> tuple[float, float]:
    """Least and largest value in the image's unit, from those stored.

    Raises:
        IntensityError: a voxel is NaN or infinite, or more than float32 holds.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        what = "NaN" if math.isnan(low) else "infinite"
        raise IntensityError(f"{gate.path}: some voxels are {what}, expected finite values; replace or mask them")
    scaled = [end * gate.slope for end in (low, high)]
    real = [end + gate.intercept for end in scaled]
    reached = max(abs(end) for end in (low, high, *scaled, *real))
    if reached > _LARGEST:
        raise IntensityError(
            f"{gate.path}: its values reach {reached:.1e}, expected at most {_LARGEST:.1e}, what float32 holds; mend "
            "scl_slope or scale the image"
        )
    return min(real), max(real)


def _check_contrast(gate: NiftiInfo) -> None:
    # The whole file is read before anything is said of its values, for a damaged one may hold any.
    ranges = np.array([value_range(piece) for piece in stored_voxels(gate)])
    low, high = (np.float32(end) for end in check_range(float(ranges.min()), float(ranges.max()), gate))
    if low == high:
        raise IntensityError(f"{gate.path}: every voxel is {low:g}, expected an image; export the scan again")


def write_volume(
    path: Path,
    array: NDArray[Any],
    affine: Affine,
    *,
    dtype: DTypeLike = np.float32,
    sidecar: Mapping[str, Any] | None = None,
    code: int = _SCANNER,
) -> None:
    """Write an image and its JSON sidecar, each atomically, the sidecar first so that no image lacks one.

    Args:
        path: `.nii.gz` or `.nii`.
        array: voxels.
        affine: written as qform and sform alike; as sform alone within a milliradian of a half turn, where the
            float32 quaternion of a qform is not exact.
        dtype: voxel type on disk.
        sidecar: what the JSON file beside it says; none is written where left out.
        code: NIfTI code of both forms: 1 scanner, 2 aligned, 4 the MNI template.
    """
    path = Path(path)
    image = nib.Nifti1Image(np.asarray(array).astype(dtype), affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    i, j, k = image.shape[:3]
    if corner_distance(image.get_qform(), affine, (i, j, k)) > _QUATERNION_MM:
        image.set_qform(affine, code=0)
    image.header.set_xyzt_units("mm")
    if sidecar is not None:
        commit_json(sidecar_path(path), sidecar)
    with committing(path) as temp:
        nib.save(image, temp)


def sidecar_path(path: Path) -> Path:
    """The JSON file beside an image."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
