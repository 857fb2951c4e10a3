"""NIfTI in and out: a header gate in plain Python first, then nibabel, then a look at the voxels.

The gate costs a few hundred bytes of reading. It bounds everything that follows: no reader sees a file whose header
asks for more memory than the cap, lies about its length, or holds a kind of voxel this project does not use.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from dualflow.commit import commit_json, committing
from dualflow.errors import GeometryError, HeaderError, IntensityError
from dualflow.imaging.geometry import Affine, Volume, resolve_affine

__all__ = ["MAX_BYTES", "Volume", "read_volume", "write_volume"]

MAX_BYTES = 2 << 30
# Room for header extensions before the voxels, and for padding after them.
_SLACK = 16 << 20
_SCANNER, _LAST_CODE = 1, 5
_DATATYPES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
_UNITS = {0: "unknown", 1: "metre", 2: "mm", 3: "micron"}


@dataclass(frozen=True)
class _Form:
    """Where one version of NIfTI keeps what the gate looks at: `struct` formats and byte offsets."""

    size: int
    magic: tuple[int, bytes]
    dim: tuple[str, int]
    datatype: int
    pixdim: tuple[str, int]
    vox_offset: tuple[str, int]
    units: tuple[str, int]
    codes: tuple[str, int]
    reader: type[nib.Nifti1Header]


_FORMS = {
    348: _Form(348, (344, b"n+1\0"), ("8h", 40), 70, ("8f", 76), ("f", 108), ("b", 123), ("2h", 252), nib.Nifti1Header),
    540: _Form(
        540, (4, b"n+2\0\r\n\x1a\n"), ("8q", 16), 12, ("8d", 104), ("q", 168), ("i", 500), ("2i", 344), nib.Nifti2Header
    ),
}


@dataclass(frozen=True)
class _Gate:
    """What the gate found: enough to read the file within bounds."""

    form: _Form
    shape: tuple[int, ...]
    length: int
    compressed: bool


def read_volume(path: Path, *, dimensions: int = 3) -> Volume:
    """Read one scan as float32 with the affine that the header's two forms agree on.

    Trailing axes of length 1 beyond `dimensions` are dropped.

    Raises:
        HeaderError: the file is not NIfTI, is cut short, claims too much memory, or has other dimensions.
        GeometryError: its place in the world cannot be trusted.
        IntensityError: its voxels are not finite, or all the same.
    """
    path = Path(path)
    gate = _check_header(path, dimensions)
    stream = io.BytesIO(_read_bytes(path, gate))
    try:
        header = gate.form.reader(stream.getvalue()[: gate.form.size])
        array = np.asarray(ArrayProxy(stream, header), dtype=np.float32)
    except (ValueError, OSError, OverflowError, HeaderDataError) as error:
        raise HeaderError(f"{path}: nibabel cannot read it ({error}); write the scan again from its DICOM") from error
    array = array.reshape(gate.shape, order="F")
    i, j, k = gate.shape[:3]
    affine = resolve_affine(header, (i, j, k), path)
    _check_voxels(array, path)
    return Volume(array, affine, path)


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
        affine: written as qform and sform alike.
        dtype: voxel type on disk.
        sidecar: what the JSON file beside it says; none is written where left out.
        code: NIfTI code of both forms: 1 scanner, 2 aligned, 4 the MNI template.
    """
    path = Path(path)
    image = nib.Nifti1Image(np.asarray(array).astype(dtype), affine)
    image.set_qform(affine, code=code)
    image.set_sform(affine, code=code)
    image.header.set_xyzt_units("mm")
    if sidecar is not None:
        commit_json(sidecar_path(path), sidecar)
    with committing(path) as temp:
        nib.save(image, temp)


def sidecar_path(path: Path) -> Path:
    """The JSON file beside an image."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def _check_header(path: Path, dimensions: int) -> _Gate:
    if not path.is_file():
        raise HeaderError(f"{path}: is not a regular file, expected a .nii or .nii.gz file; check the path")
    try:
        with path.open("rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as stream:
            block = stream.read(max(_FORMS))
    except (OSError, EOFError, zlib.error) as error:
        raise HeaderError(f"{path}: its header cannot be read ({error}); copy the file again") from error
    order, form = _find_form(block, path)
    get = _Fields(order, block)
    shape = _check_shape(get(*form.dim), dimensions, path)
    (code,) = get("h", form.datatype)
    if code not in _DATATYPES:
        raise HeaderError(
            f"{path}: datatype code {code} is not a real number type, expected one of {sorted(_DATATYPES)}; "
            "store the scan as int16 or float32"
        )
    voxels = math.prod(shape)
    claimed = voxels * max(_DATATYPES[code], 4)
    if claimed > MAX_BYTES:
        raise HeaderError(
            f"{path}: dimensions {shape} need {claimed / 2**30:.1f} GiB, expected at most {MAX_BYTES / 2**30:.0f} GiB; "
            "crop or resample the scan, or mend its header"
        )
    spacing = get(*form.pixdim)[1:4]
    if not all(math.isfinite(edge) and edge > 0 for edge in spacing):
        raise GeometryError(f"{path}: voxel edges are {spacing} mm, expected positive numbers; mend pixdim")
    unit = get(*form.units)[0] & 7
    if unit not in (0, 2):
        raise GeometryError(
            f"{path}: its length unit is {_UNITS.get(unit, unit)}, expected mm; convert the affine and set xyzt_units"
        )
    codes = get(*form.codes)
    if not all(0 <= form_code <= _LAST_CODE for form_code in codes):
        raise GeometryError(
            f"{path}: qform_code and sform_code are {codes}, expected 0 to {_LAST_CODE}; convert it again from DICOM"
        )
    (offset,) = get(*form.vox_offset)
    if not math.isfinite(offset) or not form.size <= offset <= form.size + _SLACK:
        raise HeaderError(f"{path}: vox_offset is {offset}, expected {form.size + 4} or a little more; mend the header")
    return _Gate(form, shape, int(offset) + voxels * _DATATYPES[code], compressed)


@dataclass(frozen=True)
class _Fields:
    """Reads fields of a header block in its byte order."""

    order: str
    block: bytes

    def __call__(self, layout: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(self.order + layout, self.block, offset)


def _find_form(block: bytes, path: Path) -> tuple[str, _Form]:
    for order in "<>":
        form = _FORMS.get(struct.unpack_from(order + "i", block)[0]) if len(block) >= 4 else None
        if form and len(block) >= form.size:
            offset, magic = form.magic
            found = block[offset : offset + len(magic)]
            if found == magic:
                return order, form
            raise HeaderError(
                f"{path}: its magic is {found!r}, expected {magic!r}; Analyze and two-file NIfTI are not read: "
                "convert it to .nii.gz"
            )
    raise HeaderError(f"{path}: does not start with a whole NIfTI header; convert it to .nii.gz or copy it again")


def _check_shape(dim: tuple[int, ...], dimensions: int, path: Path) -> tuple[int, ...]:
    count = dim[0]
    if not 1 <= count <= 7 or any(size < 1 for size in dim[1 : count + 1]):
        raise HeaderError(f"{path}: dim is {dim}, expected 1 to 7 axes of positive length; mend the header")
    shape = dim[1 : count + 1]
    while len(shape) > dimensions and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < dimensions or any(size < 2 for size in shape[:3]):
        raise HeaderError(
            f"{path}: its size is {shape}, expected a {dimensions}D image of several slices; use a 3D scan"
        )
    if len(shape) > dimensions:
        raise HeaderError(
            f"{path}: its size is {shape}, expected {dimensions} dimensions; average the frames or pick one"
        )
    return shape


def _read_bytes(path: Path, gate: _Gate) -> bytes:
    """The file's bytes up to the last voxel; a gzip stream is read to its checksum, but never past the slack."""
    try:
        if gate.compressed:
            with gzip.open(path) as stream:
                data = stream.read(gate.length + _SLACK + 1)
        else:
            with path.open("rb") as stream:
                data = stream.read(gate.length)
    except (OSError, EOFError, zlib.error) as error:
        raise HeaderError(f"{path}: cannot be read to its end ({error}); copy the file again") from error
    if len(data) < gate.length:
        raise HeaderError(
            f"{path}: holds {len(data)} bytes, expected {gate.length} by its header; it is cut short: copy it again"
        )
    if len(data) > gate.length + _SLACK:
        raise HeaderError(f"{path}: unpacks to more than the {gate.length} bytes its header declares; copy it again")
    return data


def _check_voxels(array: NDArray[np.float32], path: Path) -> None:
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(array.size - np.isfinite(array).sum())
        raise IntensityError(
            f"{path}: {count} voxels are NaN or infinite, expected finite values; replace or mask them"
        )
    if low == high:
        raise IntensityError(f"{path}: every voxel is {low:g}, expected an image; export the scan again")
