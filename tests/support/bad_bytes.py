"""Contents of valid and damaged NIfTI files and gzip streams, as bytes; `bad_files.py` has the corpus made of them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable

import nibabel as nib
import numpy as np

SHAPE = (9, 8, 7)
AFFINE = np.array([[2.0, 0, 0, -8], [0, 2.0, 0, -7], [0, 0, 3.0, -9], [0, 0, 0, 1]])
IMAGE = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
NAN, INF = float("nan"), float("inf")
ONE, TWO = nib.Nifti1Header, nib.Nifti2Header
MAGIC = b"\x1f\x8b"


def nifti(array=IMAGE, kind=ONE, order="<", gap=4, **fields):
    """Bytes of an image file: a valid header with `fields` replaced, `gap` zero bytes, and the voxels."""
    header = kind(endianness=order)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["pixdim"][1:4] = np.diag(AFFINE)[:3]
    header.set_qform(AFFINE, 1)
    header.set_sform(AFFINE, 1)
    header["xyzt_units"] = 2
    header["vox_offset"] = header.single_vox_offset - 4 + gap
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(gap) + array.astype(header.get_data_dtype()).tobytes(order="F")


def of_each(name, *values, **fields):
    """One file for each value of a header field."""
    return [nifti(**fields, **{name: value}) for value in values]


def dims(*sizes):
    """The header field `dim`, padded with 1."""
    return (*sizes, *[1] * (8 - len(sizes)))


def sized(*shapes, **fields):
    """One file for each declared shape; the voxels are always those of the valid image."""
    return [nifti(dim=dims(len(shape), *shape), **fields) for shape in shapes]


def spaced(*spacings, **fields):
    """One file for each pixdim."""
    return of_each("pixdim", *[(*([1] if len(row) == 3 else []), *row, *[1] * 4) for row in spacings], **fields)


def placed(*changes, **fields):
    """One file without a qform for each set of changes (row, column, value) to the affine of its sform."""
    images = []
    for change in changes:
        affine = AFFINE.copy()
        for row, column, value in change:
            affine[row, column] = value
        rows = {f"srow_{axis}": affine[row] for row, axis in enumerate("xyz")}
        images.append(nifti(**{"qform_code": 0} | rows | fields))
    return images


def with_voxels(*values, at=(4, 4, 4), dtype=np.float32):
    """One file for each value, which replaces a single voxel of the valid image."""
    images = []
    for value in values:
        array = IMAGE.astype(dtype)
        array[at] = value
        images.append(nifti(array))
    return images


def packed(data: bytes) -> bytes:
    """A gzip stream."""
    return gzip.compress(data, mtime=0)


GOOD, GOOD_TWO = nifti(), nifti(kind=TWO)
PACKED = packed(GOOD)


def cuts(data: bytes, lengths: Iterable[int]) -> list[bytes]:
    """The file truncated to each length."""
    return [data[:length] for length in lengths]


def flips(data: bytes, offsets: Iterable[int], bits: int = 1) -> list[bytes]:
    """One copy of the file for each offset, with `bits` of that byte flipped."""
    return [data[:offset] + bytes([data[offset] ^ bits]) + data[offset + 1 :] for offset in offsets]


def put(data: bytes, offset: int, new: bytes) -> bytes:
    """The file with the bytes at `offset` replaced."""
    return data[:offset] + new + data[offset + len(new) :]


def with_name(size: int, stream: bytes) -> bytes:
    """A gzip stream whose header has a file name of `size` bytes."""
    return stream[:3] + b"\x08" + stream[4:10] + b"x" * size + b"\0" + stream[10:]


def inflating(mib: int, start: bytes) -> bytes:
    """A small gzip stream that unpacks to `start` and `mib` MiB of zeros, built without holding them in memory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head, block = (packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) for data in (start, bytes(1 << 20)))
    return MAGIC + b"\x08" + bytes(7) + head + mib * block + packer.flush() + bytes(8)
