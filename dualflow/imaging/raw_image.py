"""Verification of raw images: one pass over a file digests and verifies it, and a second one loads it.

The index caches the digests of the first pass. Preprocessing reuses them while the file has the same size and
modification time.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualflow.imaging.affines import resolve_affine
from dualflow.imaging.nifti_header import check_header
from dualflow.imaging.volume import (
    check_contrast,
    file_range,
    merged_range,
    real_voxels,
    stored_voxels,
    value_range,
)


@dataclass(frozen=True)
class ImageDigest:
    """Digests and value range of an image file.

    Attributes:
        size: bytes of the file.
        mtime_ns: its modification time.
        sha256: hex SHA-256 of the file.
        values_sha256: hex SHA-256 of shape and values, rounded to float32; equal for copies that differ in name,
            compression, type of the voxels or other header fields.
        minimum: smallest stored value; NaN if any voxel is.
        maximum: largest stored value.
    """

    size: int
    mtime_ns: int
    sha256: str
    values_sha256: str
    minimum: float
    maximum: float

    def is_current(self, path: Path) -> bool:
        """Whether the file still has the size and modification time it was read with."""
        try:
            state = path.stat()
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class RawImage:
    """A raw image that passed verification, not yet loaded.

    Attributes:
        path: the file.
        sidecar: its BIDS metadata.
        digest: digests and value range of the file.
    """

    path: Path
    sidecar: dict[str, Any]
    digest: ImageDigest


def digest_image(path: Path) -> ImageDigest:
    """Compute digests and value range of a file in one pass, in small pieces.

    Raises:
        DataError: the header is invalid, or the file cannot be read to its end.
    """
    info = check_header(path, 4, series=True)
    state = info.path.stat()  # before the pass, so that a file that changes meanwhile is not current
    file_hash = hashlib.sha256()
    # A scan with a trailing axis of length 1 has the same voxels as one without.
    value_hash = hashlib.sha256(str(_without_ones(info.shape)).encode())
    ranges = []
    for piece in stored_voxels(info, file_hash=file_hash):
        with np.errstate(over="ignore", invalid="ignore"):  # the checks below find values that float32 cannot hold
            values = real_voxels(piece, info)
        values += np.float32(0)  # -0 becomes 0
        value_hash.update(values.astype("<f4", copy=False).data)
        ranges.append(value_range(piece))
    minimum, maximum = merged_range(ranges)
    return ImageDigest(
        state.st_size, state.st_mtime_ns, file_hash.hexdigest(), value_hash.hexdigest(), minimum, maximum
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without trailing axes of length 1 beyond the third."""
    return shape[:3] if all(size == 1 for size in shape[3:]) else shape


def check_scan(path: Path, digest: ImageDigest, *, skip_nan: bool = False) -> None:
    """Check an image's header and affine, and the value range of a single frame.

    Only the header is read. With `skip_nan`, so are the voxels of an image with NaN, whose digest lacks the range of
    the others.

    Raises:
        HeaderError: the file is not NIfTI, is cut short, claims too much memory, or has other dimensions.
        GeometryError: its affine is invalid or ambiguous.
        IntensityError: its voxels are not finite, or all the same; with `skip_nan`, those that are not NaN.
    """
    info = check_header(path, 4, series=True)
    i, j, k = info.shape[:3]
    resolve_affine(info.header, (i, j, k), info.path)
    if len(info.shape) == 3:  # frames of a series outside the time window are not checked
        low, high = digest.minimum, digest.maximum
        if skip_nan and math.isnan(low):
            low, high = file_range(info, skip_nan=True)
        check_contrast(low, high, info, skip_nan=skip_nan)
