"""PET series, read frame by frame, so that memory holds a single frame."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dualflow.imaging.affines import resolve_affine
from dualflow.imaging.geometry import Affine, Volume
from dualflow.imaging.nifti_header import NiftiInfo, check_header
from dualflow.imaging.volume import check_range, real_voxels, stored_voxels, value_range


@dataclass(frozen=True)
class Series:
    """A 3D or 4D file with a valid header.

    Attributes:
        path: the file.
        count: number of frames; 1 for a 3D file.
        affine: voxel index to world (RAS+ mm), the same for every frame.
        info: the header.
    """

    path: Path
    count: int
    affine: Affine
    info: NiftiInfo

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of a frame."""
        i, j, k = self.info.shape[:3]
        return i, j, k

    def frames(self, indices: Collection[int], *, skip_nan: bool = False) -> Iterator[tuple[int, Volume]]:
        """Yield the frames `indices` with their index, in the file's order; the file is read to its end.

        With `skip_nan`, frames may have NaN, which stays.

        Raises:
            HeaderError: the file is shorter or much longer than its header says, or damaged.
            IntensityError: a frame has voxels that are not finite, other than NaN with `skip_nan`, or nothing but NaN.
        """
        for index, stored in enumerate(stored_voxels(self.info, math.prod(self.shape))):
            if index in indices:
                check_range(*value_range(stored, skip_nan=skip_nan), self.info, skip_nan=skip_nan)
                frame = real_voxels(stored, self.info).reshape(self.shape, order="F")
                yield index, Volume(frame, self.affine, self.path)


def open_series(path: Path) -> Series:
    """Check a file's header and affine; no voxel is read.

    Raises:
        HeaderError: the file is not NIfTI, claims too much memory, or has neither three nor four dimensions.
        GeometryError: its affine is invalid or ambiguous.
    """
    info = check_header(path, 4, series=True)
    i, j, k = info.shape[:3]
    affine = resolve_affine(info.header, (i, j, k), info.path)
    return Series(info.path, info.shape[3] if len(info.shape) > 3 else 1, affine, info)
