"""Reading and writing NIfTI volumes.

Voxels are checked in small pieces before memory for the image is allocated. A file that is cut short, damaged, not
finite or constant therefore costs a few MiB, independent of the size that its header declares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dualflow.arrays import Singles
from dualflow.commit import commit_json, committing
from dualflow.errors import HeaderError, IntensityError
from dualflow.imaging.affines import SCANNER, FormCodes, resolve_affine
from dualflow.imaging.geometry import Affine, Volume, corner_distance
from dualflow.imaging.nifti_header import SLACK, NiftiInfo, check_header
from dualflow.imaging.nifti_stream import Hasher, open_image
from dualflow.layout import sidecar_path

__all__ = ["Volume", "read_volume", "write_volume"]

_PIECE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)
_QUATERNION_MM = 0.005


def read_volume(path: Path, *, dimensions: int = 3, verified: bool = False, nan_as_zero: bool = False) -> Volume:
    """Read one image as float32 with its affine.

    Args:
        path: `.nii` or `.nii.gz`.
        dimensions: axes of the image; further axes of length 1 are dropped.
        verified: the file has passed `check_scan`, so it is read once; otherwise a first pass checks it
            before memory is allocated.
        nan_as_zero: whether NaN is read as 0, in an image whose 0 means outside the field of view.

    Raises:
        HeaderError: the file is not NIfTI, is cut short, claims too much memory, or has other dimensions.
        GeometryError: its affine is invalid or ambiguous.
        IntensityError: its voxels are not finite, or all the same; with `nan_as_zero`, those that are not NaN.
    """
    info = check_header(path, dimensions)
    i, j, k = info.shape[:3]
    affine = resolve_affine(info.header, (i, j, k), info.path)
    if not verified:
        check_contrast(*file_range(info, skip_nan=nan_as_zero), info, skip_nan=nan_as_zero)
    array, start, ranges = np.empty(math.prod(info.shape), dtype=np.float32), 0, []
    for piece in stored_voxels(info):
        ranges.append(value_range(piece, skip_nan=nan_as_zero))
        array[start : start + piece.size] = real_voxels(piece, info)
        start += piece.size
    # Again for a verified file, because it can have changed since.
    check_contrast(*merged_range(ranges, skip_nan=nan_as_zero), info, skip_nan=nan_as_zero)
    if nan_as_zero:
        array[np.isnan(array)] = 0
    return Volume(array.reshape(info.shape, order="F"), affine, info.path)


def stored_voxels(
    info: NiftiInfo, size: int = _PIECE, file_hash: Hasher | None = None
) -> Iterator[NDArray[np.generic]]:
    """Voxels as stored, `size` at a time, in the file's order; reads the file to its end and checks its length.

    Args:
        info: the file's header.
        size: voxels per piece.
        file_hash: updated with every byte of the file.

    Raises:
        HeaderError: the file cannot be read, or is shorter or much longer than its header declares.
    """
    with open_image(info.path, compressed=info.compressed, file_hash=file_hash) as stream:
        stream.read(info.offset)
        remaining = math.prod(info.shape)
        while remaining:
            count = min(size, remaining)
            data = stream.read(count * info.dtype.itemsize)
            if len(data) < count * info.dtype.itemsize:
                raise HeaderError(
                    f"{info.path}: ends before the {info.length} bytes that its header declares; it is cut short: "
                    "copy it again"
                )
            remaining -= count
            yield np.frombuffer(data, info.dtype)
        if len(stream.read(SLACK + 1)) > SLACK:
            raise HeaderError(
                f"{info.path}: unpacks to more than the {info.length} bytes its header declares; copy it again"
            )


def real_voxels(stored: NDArray[np.generic], info: NiftiInfo) -> Singles:
    """Stored values in the image's unit, by the header's slope and intercept.

    The integer that stands for 0 gives exactly 0, which means outside the field of view: rounding to integers would
    leave it up to half a step away.
    """
    values = stored.astype(np.float32)
    if (info.slope, info.intercept) != (1.0, 0.0):
        values *= np.float32(info.slope)
        values += np.float32(info.intercept)
        if np.issubdtype(info.dtype, np.integer):
            values[stored == round(-info.intercept / info.slope)] = 0
    return values


def value_range(stored: NDArray[Any], *, skip_nan: bool = False) -> tuple[float, float]:
    """Minimum and maximum of stored values; NaN if any of them is, or all of them with `skip_nan`."""
    low, high = (np.fmin, np.fmax) if skip_nan else (np.minimum, np.maximum)
    with np.errstate(invalid="ignore"):
        return float(low.reduce(stored, axis=None)), float(high.reduce(stored, axis=None))


def merged_range(ranges: Iterable[tuple[float, float]], *, skip_nan: bool = False) -> tuple[float, float]:
    """Range of the pieces of one image, from the range of each; NaN as in `value_range`."""
    return value_range(np.array(list(ranges)), skip_nan=skip_nan)


def file_range(info: NiftiInfo, *, skip_nan: bool = False) -> tuple[float, float]:
    """Range of the stored values of a file, read in pieces; NaN as in `value_range`.

    Raises:
        HeaderError: as `stored_voxels`.
    """
    ranges = (value_range(piece, skip_nan=skip_nan) for piece in stored_voxels(info))
    return merged_range(ranges, skip_nan=skip_nan)


def check_range(low: float, high: float, info: NiftiInfo, *, skip_nan: bool = False) -> tuple[float, float]:
    """Range of an image in its unit, from the range of its stored values, of those that are not NaN with `skip_nan`.

    Raises:
        IntensityError: a voxel is NaN or infinite, or exceeds float32.
    """
    if skip_nan and math.isnan(low):
        raise IntensityError(f"{info.path}: every voxel is NaN, expected an image; export the scan again")
    if not (math.isfinite(low) and math.isfinite(high)):
        defect = "NaN" if math.isnan(low) else "infinite"
        raise IntensityError(f"{info.path}: some voxels are {defect}, expected finite values; replace or mask them")
    scaled = [end * info.slope for end in (low, high)]
    real = [end + info.intercept for end in scaled]
    largest = max(abs(end) for end in (low, high, *scaled, *real))
    if largest > _LARGEST:
        raise IntensityError(
            f"{info.path}: its values reach {largest:.1e}, expected at most {_LARGEST:.1e}, the largest float32; "
            "correct scl_slope or scale the image"
        )
    return min(real), max(real)


def check_contrast(low: float, high: float, info: NiftiInfo, *, skip_nan: bool = False) -> None:
    """Check the range of an image's stored values, with `skip_nan` of those that are not NaN.

    Raises:
        IntensityError: a voxel is NaN or infinite or exceeds float32, or all voxels are the same.
    """
    low, high = (float(np.float32(end)) for end in check_range(low, high, info, skip_nan=skip_nan))
    if low == high:
        raise IntensityError(f"{info.path}: every voxel is {low:g}, expected an image; export the scan again")


def write_volume(
    path: Path,
    array: NDArray[Any],
    affine: Affine,
    *,
    dtype: DTypeLike = np.float32,
    sidecar: Mapping[str, Any] | None = None,
    codes: FormCodes = SCANNER,
) -> None:
    """Write an image and its JSON sidecar, each atomically; the sidecar comes first, so that no image lacks one.

    Args:
        path: `.nii.gz` or `.nii`.
        array: voxels.
        affine: written as both qform and sform; as sform alone within a milliradian of a half turn, where the float32
            quaternion of a qform is not exact.
        dtype: voxel type on disk.
        sidecar: contents of the JSON file beside the image; None writes none.
        codes: NIfTI codes of qform and sform, such as those of the scan whose grid this is; a form of code 0 is unset.

    Raises:
        IntensityError: a voxel is NaN or infinite; nothing is written.
    """
    path = Path(path)
    if invalid := int((~np.isfinite(array)).sum()):
        raise IntensityError(
            f"{path.name}: {invalid} voxels are NaN or infinite and it is not written, expected finite values; check "
            "the scan in a viewer"
        )
    image = nib.Nifti1Image(np.asarray(array).astype(dtype), affine)
    image.set_sform(affine, code=codes.sform)
    image.set_qform(affine, code=codes.qform)
    i, j, k = image.shape[:3]
    if corner_distance(image.get_qform(), affine, (i, j, k)) > _QUATERNION_MM:
        image.set_qform(affine, code=0)
        image.set_sform(affine, code=codes.sform or codes.qform)
    image.header.set_xyzt_units("mm")
    if sidecar is not None:
        commit_json(sidecar_path(path), sidecar)
    with committing(path) as temp:
        nib.save(image, temp)
