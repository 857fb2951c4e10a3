"""Headers of NIfTI files: what a valid one says, and each bound, on the last value within and the first one beyond."""

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest
from bad_bytes import GOOD, GOOD_TWO, IMAGE, PACKED, SHAPE, TWO, dims, nifti, put
from bad_files import CLAIMS, CONTAINERS

from dualflow.errors import DataError, GeometryError, HeaderError
from dualflow.imaging.nifti_header import check_header

MIB = 1 << 20
# The documented bounds, in numbers.
SLACK, MAX_FRAMES = 16 * MIB, 1024
HEADER = 352
BYTE = {"datatype": 2, "bitpix": 8}


@pytest.fixture
def written(tmp_path):
    """Write a header for `shape` into a sparse file of `size` bytes; the default is the declared size."""

    def write(shape=SHAPE, size=None, *, compressed=False, length=None, **fields):
        header = nifti(dim=dims(len(shape), *shape), **fields)[: 544 if fields.get("kind") is TWO else HEADER]
        itemsize = nib.Nifti1Header(header[:348], check=False).get_data_dtype().itemsize if len(header) == HEADER else 4
        start = gzip.compress(header, mtime=0) if compressed else header
        path = tmp_path / "scan.nii"
        with path.open("wb") as stream:
            stream.write(start)
            stream.truncate(len(header) + int(np.prod(shape, dtype=object)) * itemsize if size is None else size)
        return path

    return write


def accepted(path, dimensions=3, **options):
    """Whether a header is accepted; if not, the refusal is a HeaderError or GeometryError."""
    try:
        check_header(path, dimensions, **options)
    except (HeaderError, GeometryError):
        return False
    return True


@pytest.mark.parametrize("defect", [*CONTAINERS, *CLAIMS], ids=lambda defect: defect.name)
def test_a_defect_is_refused_for_its_reason(tmp_path, defect):
    """The error has the defect's type and names it; no voxel is read."""
    for path in defect.make(tmp_path):
        with pytest.raises(defect.error, match=defect.words) as refusal:
            check_header(path, 3)
        assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD, ("<f4", 352, 1, 0, False)),
        (PACKED, ("<f4", 352, 1, 0, True)),
        (GOOD_TWO, ("<f4", 544, 1, 0, False)),
        (nifti(order=">"), (">f4", 352, 1, 0, False)),
        (nifti(IMAGE.astype("i2"), scl_slope=2, scl_inter=3), ("<i2", 352, 2, 3, False)),
        (nifti(scl_slope=0, scl_inter=3), ("<f4", 352, 1, 0, False)),
        (nifti(scl_slope=np.nan, scl_inter=3), ("<f4", 352, 1, 0, False)),
        (nifti(gap=20), ("<f4", 368, 1, 0, False)),
    ],
)
def test_a_valid_header_is_returned(tmp_path, content, expected):
    """Shape, type with its byte order, offset, scaling and length are those of the file."""
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    info = check_header(str(path), 3)
    assert (info.dtype.str, info.offset, info.slope, info.intercept, info.compressed) == expected
    assert (info.path, info.shape) == (path, SHAPE)
    assert info.length == info.offset + IMAGE.size * info.dtype.itemsize
    assert info.header.get_data_shape() == SHAPE


@pytest.mark.parametrize("datatype", [2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280])
def test_real_numbers_of_at_most_64_bits_are_read(written, datatype):
    """All integers and both floats of the standard."""
    assert accepted(written(datatype=datatype))


@pytest.mark.parametrize(
    ("shape", "fields", "expected"),
    [
        ((1024, 1024, 256), {}, True),
        ((1024, 1024, 257), {}, False),
        ((1024, 1024, 256), BYTE, True),
        ((1024, 1024, 257), BYTE, False),  # voxels of 8 bits become float32
        ((512, 1024, 257), {"datatype": 64, "bitpix": 64}, False),
        ((2, 2, 2), {}, True),
        ((2, 2, 1), {}, False),
        ((1, 2, 2), {}, False),
        ((9, 8, 7, 1, 1, 1, 1), {}, True),
        ((9, 8, 7, 2), {}, False),
        ((9, 8), {}, False),
    ],
)
def test_the_size_of_an_image_is_bounded(written, shape, fields, expected):
    """1 GiB as float32, two voxels along each axis, three axes."""
    assert accepted(written(shape, **fields)) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 4, 4), True),
        ((4, 4, 4, MAX_FRAMES), True),
        ((4, 4, 4, MAX_FRAMES + 1), False),
        ((1024, 1024, 256, 16), True),
        ((1024, 1024, 256, 17), False),
        ((1024, 1024, 257, 1), False),
        ((4, 4, 4, 2, 2), False),
        ((4, 4), False),
    ],
)
def test_the_size_of_a_series_is_bounded(written, shape, expected):
    """1 GiB per frame, 16 GiB and 1024 frames in all."""
    assert accepted(written(shape), 4, series=True) == expected


@pytest.mark.parametrize(
    ("offset", "kind", "expected"),
    [
        (351, None, False),
        (352, None, True),
        (352 + SLACK, None, True),
        (352 + 16 + SLACK, None, False),
        (543, TWO, False),
        (544, TWO, True),
    ],
)
def test_voxels_begin_behind_the_header_and_its_extensions(written, offset, kind, expected):
    """Extensions have at most 16 MiB."""
    fields = {"kind": kind} if kind else {}
    path = written(size=offset + IMAGE.nbytes, vox_offset=offset, **fields)
    assert accepted(path) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (HEADER + IMAGE.nbytes - 1, False),
        (HEADER + IMAGE.nbytes, True),
        (HEADER + IMAGE.nbytes + SLACK, True),
        (HEADER + IMAGE.nbytes + SLACK + 1, False),
    ],
)
def test_a_plain_file_has_the_declared_length(written, size, expected):
    """It may be padded by 16 MiB."""
    assert accepted(written(size=size)) == expected


@pytest.mark.parametrize(
    ("shape", "stored", "expected"),
    [
        ((4, 4, (1032 * 400 - HEADER) // 64), 400, True),
        ((4, 4, (1032 * 400 - HEADER) // 64 + 1), 400, False),  # more than deflate can compress
        ((1024, 1024, 127), MIB, True),
        ((1024, 1024, 128), MIB, False),  # more than 200 to 1, and large
        ((1024, 1024, 150), 3 * MIB, False),
        ((1024, 1024, 150), 3 * MIB + 2, True),
    ],
)
def test_a_packed_file_cannot_claim_much_more_than_it_holds(written, shape, stored, expected):
    """1032 to 1 is the limit of the format, 200 to 1 that of images above 512 MiB."""
    path = written(shape, stored, compressed=True)
    if not accepted(path):
        assert not expected
        with pytest.raises(HeaderError, match=r"too few for|no scan is that empty"):
            check_header(path, 3)
    else:
        assert expected


@pytest.mark.parametrize("code", range(-1, 7))
def test_codes_of_forms_are_those_of_the_standard(written, code):
    """0 to 5."""
    assert accepted(written(qform_code=code)) == (0 <= code <= 5)
    assert accepted(written(sform_code=code)) == (0 <= code <= 5)


@pytest.mark.parametrize("unit", range(8))
def test_lengths_are_in_millimetres(written, unit):
    """An unset unit is read as mm; units of time in the upper bits do not matter."""
    path = written(xyzt_units=unit | 8)
    assert accepted(path) == (unit in (0, 2))
    if unit == 1:
        with pytest.raises(GeometryError, match="its length unit is metre"):
            check_header(path, 3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": dims(3, 9, 8, 0)}, r"dim is \[3, 9, 8, 0, 1, 1, 1, 1\], expected"),
        ({"dim": dims(3, 9, 8, 7, 9), "magic": b"ni1"}, r"magic is b'ni1', expected b'n\+1'"),
        ({"dim": dims(3, 1024, 1024, 512)}, r"dimensions \(1024, 1024, 512\) need 2.0 GiB, expected at most 1 GiB"),
        ({"datatype": 32}, r"datatype 32 \(complex64\)"),
        ({"pixdim": (1, 0, 2, 3, 1, 1, 1, 1)}, r"voxel edges are \[0.0, 2.0, 3.0\] mm"),
        ({"vox_offset": 0}, "vox_offset is 0, expected 352"),
        ({"scl_slope": np.inf, "scl_inter": 1}, "scl_slope and scl_inter are inf and 1"),
        ({"sizeof_hdr": 349}, "sizeof_hdr is 349, expected a NIfTI header of 348 or 540"),
    ],
)
def test_a_refusal_names_the_value(tmp_path, fields, words):
    """The message has the values of the header, for the person who corrects it."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(**fields))
    with pytest.raises(DataError, match=words):
        check_header(path, 3)


def test_a_packed_image_of_512_mib_may_be_empty(written):
    """The ratio is that of larger images."""
    fields = {"compressed": True, "vox_offset": MIB}
    assert accepted(written((512, 512, 511), MIB, **fields))
    assert not accepted(written((512, 512, 512), MIB, **fields))


def test_a_packed_claim_is_given_in_mib(written):
    """The message of an image that is too empty has both sizes."""
    with pytest.raises(HeaderError, match=re.escape("packs 600 MiB into 1.0 MiB, expected at most 200 to 1")):
        check_header(written((1024, 1024, 150), MIB, compressed=True), 3)


@pytest.mark.parametrize(
    ("sizes", "order", "mixed"),
    [
        ((1, 9, 1, 1, 1, 1, 1, 1), ">", True),
        ((7, 9, 8, 7, 1, 1, 1, 9), ">", True),
        ((0, 9, 8, 7, 1, 1, 1, 1), ">", False),
        ((8, 9, 8, 7, 1, 1, 1, 1), ">", False),
        ((99, 9, 8, 7, 1, 1, 1, 1), "<", False),
        ((3, 9, 8, -7, 1, 1, 1, 1), "<", False),
    ],
)
def test_a_mixed_byte_order_is_named(tmp_path, sizes, order, mixed):
    """The number of axes is valid in the other byte order."""
    path = tmp_path / "scan.nii"
    path.write_bytes(put(GOOD, 40, struct.pack(f"{order}8h", *sizes)))
    with pytest.raises(HeaderError, match="dim is") as refusal:
        check_header(path, 3)
    assert ("byte order is mixed" in str(refusal.value)) == mixed
