"""Checks of NIfTI headers: declared values are compared with bounds and the file's size before voxels are read.

A check reads a few hundred bytes. It refuses files that need more memory than the cap, cannot hold what their header
declares, have an unsupported voxel type, or have no valid position in space.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import data_type_codes

from dualflow.errors import GeometryError, HeaderError, IntensityError
from dualflow.imaging.nifti_stream import first_bytes, require_file

MAX_BYTES = 1 << 30
MAX_SERIES_BYTES = 16 << 30
MAX_FRAMES = 1024
# Space for header extensions before the voxels, and for padding after them.
SLACK = 16 << 20
# Deflate compresses at most 1032 to 1. Scans do not come near it; masks do, but they are small.
_BEST_RATIO = 1032
_SCAN_RATIO = 200
_SMALL_BYTES = 512 << 20
_LAST_CODE = 5
_UNITS = {0: "unknown", 1: "metre", 2: "mm", 3: "micron"}
_HEADERS = {348: (nib.Nifti1Header, b"n+1"), 540: (nib.Nifti2Header, b"n+2")}
_LINE_ENDS = (13, 10, 26, 10)
# Other formats that are named .nii.gz: offset of their magic bytes, the bytes, the format and the remedy.
_FOREIGN = (
    (0, b"\x1f\x8b", "a gzip file inside another", "unpack it once"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"BZh", "a bzip2 file", "unpack it"),
    (0, b"\xfd7zXZ", "an xz file", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it"),
    (0, b"\x89HDF", "an HDF5 or MINC file", "convert it to .nii.gz"),
    (128, b"DICM", "a DICOM file", "convert the whole series to .nii.gz, such as with dcm2niix"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with git lfs pull"),
    (0, b"/annex/objects/", "a pointer of git-annex", "fetch the file with datalad get"),
)


@dataclass(frozen=True)
class NiftiInfo:
    """The checked contents of a NIfTI header.

    Attributes:
        path: the file.
        shape: voxels along each axis.
        dtype: the type of a stored voxel, with its byte order.
        offset: bytes before the first voxel.
        slope: factor from stored to real values.
        intercept: offset added after that.
        compressed: whether the file is a gzip stream.
        header: the whole header, with its two affines.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    compressed: bool
    header: nib.Nifti1Header

    @property
    def length(self) -> int:
        """Bytes of the unpacked file up to its last voxel."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def check_header(path: Path, dimensions: int, *, series: bool = False) -> NiftiInfo:
    """Check a file's header and size; no voxel is read.

    Args:
        path: `.nii` or `.nii.gz`.
        dimensions: axes of the image; further axes of length 1 are dropped.
        series: the image may lack its last axis and is read by frame, so the memory cap holds for one frame.

    Raises:
        HeaderError: the file is not NIfTI, is cut short, claims too much memory, or has other dimensions.
        GeometryError: its spacing, unit or codes are invalid.
        IntensityError: its scaling is not finite.
    """
    path = Path(path)
    stored = require_file(path)
    if stored == 0:
        raise HeaderError(f"{path}: is empty, expected a NIfTI header and voxels; copy it again")
    block, compressed = first_bytes(path, max(_HEADERS))
    header = _find_header(block, path)
    shape = _check_shape(header, dimensions, path, minimum=3 if series else dimensions)
    dtype = _check_type(header, path)
    _check_memory(shape, dtype, path, series=series)
    slope, intercept = _check_scaling(header, path)
    info = NiftiInfo(path, shape, dtype, _check_offset(header, path), slope, intercept, compressed, header)
    _check_length(info, stored)
    _check_geometry(header, path)
    return info


def _find_header(block: bytes, path: Path) -> nib.Nifti1Header:
    sizes = {order: struct.unpack(order + "i", block[:4].ljust(4, b"\0"))[0] for order in "<>"}
    for order, size in sizes.items():
        if size in _HEADERS and len(block) < size:
            raise HeaderError(
                f"{path}: holds {len(block)} bytes, expected a NIfTI header of {size}; it is cut short: copy it again"
            )
        if size in _HEADERS:
            header_class, magic = _HEADERS[size]
            header = header_class(block[:size], endianness=order, check=False)
            _check_magic(header, magic, path)
            return header
    for start, mark, format_name, remedy in _FOREIGN:
        if block[start : start + len(mark)] == mark:
            raise HeaderError(f"{path}: is {format_name}, expected a NIfTI header; {remedy}")
    if not block:
        raise HeaderError(f"{path}: is an empty gzip stream, expected a NIfTI header; copy it again")
    if block.isascii() and (text := " ".join(block[:20].decode().split())).isprintable():
        raise HeaderError(f"{path}: is text ('{text}'), expected a NIfTI header; check the path or convert it again")
    raise HeaderError(
        f"{path}: sizeof_hdr is {sizes['<']}, expected a NIfTI header of {' or '.join(map(str, _HEADERS))}; convert it "
        "to .nii.gz or copy it again"
    )


def _check_magic(header: nib.Nifti1Header, expected: bytes, path: Path) -> None:
    magic = header["magic"].item()
    if magic != expected:
        raise HeaderError(
            f"{path}: its magic is {magic!r}, expected {expected!r}; Analyze and two-file NIfTI are not read: "
            "convert it to .nii.gz"
        )
    line_ends = tuple(header["eol_check"].tolist()) if expected == b"n+2" else _LINE_ENDS
    if line_ends != _LINE_ENDS:
        raise HeaderError(
            f"{path}: the line ends behind its magic are {line_ends}, expected {_LINE_ENDS}; it was transferred as "
            "text: copy it again as binary"
        )


def _check_shape(header: nib.Nifti1Header, dimensions: int, path: Path, *, minimum: int) -> tuple[int, ...]:
    count, *sizes = header["dim"].tolist()
    shape = tuple(sizes[: max(count, 0)])
    if not 1 <= count <= 7 or any(size < 1 for size in shape):
        mixed = ", and its byte order is mixed" if 1 <= header["dim"].byteswap()[0] <= 7 < abs(count) else ""
        raise HeaderError(
            f"{path}: dim is {[count, *sizes]}{mixed}, expected 1 to 7 axes of positive length; correct the header"
        )
    while len(shape) > dimensions and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < minimum or any(size < 2 for size in shape[:3]):
        raise HeaderError(
            f"{path}: its size is {shape}, expected a {dimensions}D image of several slices; use a 3D scan"
        )
    if len(shape) > dimensions:
        raise HeaderError(
            f"{path}: its size is {shape}, expected {dimensions} dimensions; average the frames or pick one"
        )
    return shape


def _check_type(header: nib.Nifti1Header, path: Path) -> np.dtype[np.generic]:
    code = header["datatype"].item()
    dtype, label = (
        (np.dtype(data_type_codes.dtype[code]), data_type_codes.label[code])
        if code in data_type_codes.label
        else (np.dtype("V"), "unknown")
    )
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise HeaderError(
            f"{path}: datatype {code} ({label}) is not a real number of at most 64 bits; store the scan as int16 or "
            "float32"
        )
    return dtype.newbyteorder(header.endianness)


def _check_memory(shape: tuple[int, ...], dtype: np.dtype[np.generic], path: Path, *, series: bool) -> None:
    for read, limit in ((shape[:3] if series else shape, MAX_BYTES), (shape, MAX_SERIES_BYTES)):
        claimed = math.prod(read) * max(dtype.itemsize, 4)
        if claimed > limit:
            raise HeaderError(
                f"{path}: dimensions {read} need {claimed / 2**30:.1f} GiB, expected at most {limit >> 30} GiB; crop "
                "or resample the scan, or correct its header"
            )
    if series and shape[3:] > (MAX_FRAMES,):
        raise HeaderError(f"{path}: claims {shape[3]} frames, expected at most {MAX_FRAMES}; correct its header")


def _check_scaling(header: nib.Nifti1Header, path: Path) -> tuple[float, float]:
    slope, intercept = header["scl_slope"].item(), header["scl_inter"].item()
    # The standard's mark for values without scaling, and nibabel's.
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise IntensityError(
            f"{path}: scl_slope and scl_inter are {slope:g} and {intercept:g}, expected finite numbers; correct the "
            "header"
        )
    return slope, intercept


def _check_offset(header: nib.Nifti1Header, path: Path) -> int:
    offset, minimum = header["vox_offset"].item(), header.single_vox_offset
    if not minimum <= offset <= minimum + SLACK or offset != int(offset):
        raise HeaderError(f"{path}: vox_offset is {offset:g}, expected {minimum} or a little more; correct the header")
    return int(offset)


def _check_length(info: NiftiInfo, stored: int) -> None:
    """Compare the declared length with the size of the file, so that a small file cannot claim much memory."""
    path, length = info.path, info.length
    if stored * (_BEST_RATIO if info.compressed else 1) < length:
        raise HeaderError(
            f"{path}: holds {stored} bytes, too few for the {length} that its header declares; it is cut short: copy "
            "it again"
        )
    if info.compressed and length > max(_SMALL_BYTES, _SCAN_RATIO * stored):
        raise HeaderError(
            f"{path}: packs {length / 2**20:.0f} MiB into {stored / 2**20:.1f} MiB, expected at most {_SCAN_RATIO} to "
            "1; no scan is that empty: export it again"
        )
    # Deflate stores what it cannot compress, with 5 bytes per 16 KiB.
    if info.compressed and stored > length + length // 100 + SLACK:
        raise HeaderError(
            f"{path}: its gzip stream has {stored} bytes, more than the {length} its header declares; copy it again"
        )
    if not info.compressed and stored > length + SLACK:
        raise HeaderError(
            f"{path}: holds more than the {length} bytes its header declares; correct dim or copy it again"
        )


def _check_geometry(header: nib.Nifti1Header, path: Path) -> None:
    spacing = header["pixdim"][1:4].tolist()
    if not all(math.isfinite(edge) and edge > 0 for edge in spacing):
        raise GeometryError(f"{path}: voxel edges are {spacing} mm, expected positive numbers; correct pixdim")
    unit = header["xyzt_units"].item() & 7
    if unit not in (0, 2):
        raise GeometryError(
            f"{path}: its length unit is {_UNITS.get(unit, unit)}, expected mm; convert the affine and set xyzt_units"
        )
    codes = header["qform_code"].item(), header["sform_code"].item()
    if not all(0 <= code <= _LAST_CODE for code in codes):
        raise GeometryError(
            f"{path}: qform_code and sform_code are {codes}, expected 0 to {_LAST_CODE}; convert it again from DICOM"
        )
