"""Reading and writing of volumes: round trips, and refusal of damaged files."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from dualflow.errors import GeometryError, HeaderError, IntensityError
from dualflow.imaging.affines import FormCodes
from dualflow.imaging.volume import read_volume, write_volume

SHAPE = (9, 8, 7)
AFFINE = np.array([[2.0, 0, 0, -8], [0, 2.0, 0, -7], [0, 0, 3.0, -9], [0, 0, 0, 1]])
ARRAY = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "scan.nii"
    write_volume(path, ARRAY, AFFINE)
    return path


def patched(path, *fields, cut=None):
    """Rewrite header fields (`struct` format, offset, values) of an uncompressed NIfTI-1 file."""
    data = bytearray(path.read_bytes())
    for layout, offset, *values in fields:
        struct.pack_into("<" + layout, data, offset, *values)
    path.write_bytes(bytes(data[:cut]))
    return path


def saved(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_written_volume_is_read_back(tmp_path, name):
    """Voxels and affine are the same, with and without compression."""
    write_volume(tmp_path / name, ARRAY, AFFINE)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.array.dtype == np.float32
    assert volume.path == tmp_path / name


def test_equal_volumes_give_equal_files(tmp_path):
    """Compressed files contain neither time nor file name, and qform equals sform."""
    for name in ("first.nii.gz", "second.nii.gz"):
        write_volume(tmp_path / name, ARRAY, AFFINE, sidecar={"Units": "SUVR"})
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()
    header = nib.load(tmp_path / "first.nii.gz").header
    assert header["qform_code"] == header["sform_code"] == 1
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)
    assert json.loads((tmp_path / "first.json").read_text()) == {"Units": "SUVR"}


@pytest.mark.parametrize("codes", [(2, 1), (0, 1), (1, 0), (4, 4)])
def test_codes_of_both_forms_are_written(tmp_path, codes):
    """Each form has its code, and the affine is read back with either of them."""
    write_volume(tmp_path / "scan.nii.gz", ARRAY, AFFINE, codes=FormCodes(*codes))
    header = nib.load(tmp_path / "scan.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == codes
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii.gz").affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_scaling_versions_and_byte_orders(tmp_path, kind, order):
    """Integer voxels are scaled by slope and intercept, in both NIfTI versions and byte orders."""
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype("i2").newbyteorder(order))
    image = kind(ARRAY, AFFINE, header)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(volume.array, ARRAY, atol=0.01)
    np.testing.assert_allclose(volume.affine, AFFINE)


def test_the_integer_of_zero_is_exactly_zero(tmp_path):
    """Integers with an intercept round every value; 0 means outside the field of view and stays 0."""
    values = np.random.default_rng(0).normal(5, 3, SHAPE).astype(np.float32)
    values[:3] = 0
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE, header), tmp_path / "scan.nii")
    assert nib.load(tmp_path / "scan.nii").header["scl_inter"] != 0
    array = read_volume(tmp_path / "scan.nii").array
    assert (array[:3] == 0).all()
    np.testing.assert_allclose(array, values, atol=1e-3)


def test_a_single_frame_is_a_volume(tmp_path):
    """A fourth axis of length 1 is dropped, and four dimensions are read on request."""
    path = saved(tmp_path / "scan.nii.gz", ARRAY[..., None])
    assert read_volume(path).array.shape == SHAPE
    frames = saved(tmp_path / "frames.nii.gz", np.stack([ARRAY, ARRAY], axis=-1))
    assert read_volume(frames, dimensions=4).array.shape == (*SHAPE, 2)


@pytest.mark.parametrize(
    ("fields", "cut", "error", "words"),
    [
        ([("4s", 344, b"ni1\0")], None, HeaderError, "magic"),
        ([("i", 0, 347)], None, HeaderError, "NIfTI header"),
        ([], 200, HeaderError, "NIfTI header"),
        ([], 0, HeaderError, "NIfTI header"),
        ([], -1, HeaderError, "cut short"),
        ([("8h", 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)], None, HeaderError, "GiB"),
        ([("8h", 40, 3, 9, -8, 7, 1, 1, 1, 1)], None, HeaderError, "positive length"),
        ([("8h", 40, 9, 9, 8, 7, 1, 1, 1, 1)], None, HeaderError, "axes"),
        ([("8h", 40, 2, 9, 8, 1, 1, 1, 1, 1)], None, HeaderError, "3D"),
        ([("8h", 40, 3, 9, 8, 1, 1, 1, 1, 1)], None, HeaderError, "slices"),
        ([("8h", 40, 4, 9, 8, 2, 3, 1, 1, 1)], None, HeaderError, "average the frames"),
        ([("h", 70, 128)], None, HeaderError, "datatype"),
        ([("h", 70, 32)], None, HeaderError, "datatype"),
        ([("h", 70, 1234)], None, HeaderError, "datatype"),
        ([("f", 108, float("nan"))], None, HeaderError, "vox_offset"),
        ([("f", 108, 1e12)], None, HeaderError, "vox_offset"),
        ([("f", 108, 0.0)], None, HeaderError, "vox_offset"),
        ([("8f", 76, 1, 2, 0, 3, 1, 1, 1, 1)], None, GeometryError, "pixdim"),
        ([("8f", 76, 1, 2, float("nan"), 3, 1, 1, 1, 1)], None, GeometryError, "pixdim"),
        ([("b", 123, 3)], None, GeometryError, "micron"),
        ([("2h", 252, 0, 0)], None, GeometryError, "both 0"),
        ([("2h", 252, 1, 255)], None, GeometryError, "0 to 5"),
        ([("f", 268, 0.3)], None, GeometryError, "apart"),
        ([("h", 252, 0), ("4f", 280, 0, 0, 0, 0)], None, GeometryError, "singular"),
        ([("h", 252, 0), ("4f", 280, 2, 0, 0, float("inf"))], None, GeometryError, "finite"),
        ([("h", 252, 0), ("4f", 280, 2, 1, 0, 0)], None, GeometryError, "shear"),
        ([("h", 254, 0), ("3f", 256, 9, 9, 9)], None, GeometryError, "qform"),
        ([("f", 352, float("nan"))], None, IntensityError, "NaN"),
        ([("f", 352, float("-inf"))], None, IntensityError, "infinite"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(good, fields, cut, error, words):
    """The error names the file and the defect, and says what to do."""
    with pytest.raises(error, match=words) as caught:
        read_volume(patched(good, *fields, cut=cut))
    assert str(good) in str(caught.value)
    assert ";" in str(caught.value) or ":" in str(caught.value).removeprefix(str(good))


def test_every_truncation_of_a_compressed_file_is_refused(tmp_path):
    """A copy that lost any number of bytes is refused, even if only the last byte of the checksum is missing."""
    path = tmp_path / "scan.nii.gz"
    write_volume(path, ARRAY, AFFINE)
    data = path.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(HeaderError):
            read_volume(path)


def test_a_wrong_checksum_is_refused(tmp_path):
    """A flipped bit in the stored checksum is detected."""
    path = tmp_path / "scan.nii.gz"
    write_volume(path, ARRAY, AFFINE)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(HeaderError, match="to its end"):
        read_volume(path)


def test_a_gzip_bomb_is_not_decompressed(good, tmp_path):
    """Decompression stops when the stream exceeds the size that the header declares."""
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb") as stream:
        stream.write(good.read_bytes())
        for _ in range(64):
            stream.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(HeaderError, match="unpacks to more"):
        read_volume(bomb)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_a_small_file_that_declares_gigabytes_allocates_nothing(good):
    """The declared size is compared with the file size before memory is allocated."""
    patched(good, ("8h", 40, 3, 2000, 2000, 2000, 1, 1, 1, 1))
    tracemalloc.start()
    with pytest.raises(HeaderError, match="GiB"):
        read_volume(good)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_refused(tmp_path, value):
    """An image with a single value has no content."""
    path = saved(tmp_path / "scan.nii.gz", np.full(SHAPE, value, np.uint8))
    with pytest.raises(IntensityError, match="every voxel"):
        read_volume(path)


def test_folders_and_missing_files_are_refused(tmp_path):
    """The error expects a regular file."""
    for path in (tmp_path, tmp_path / "missing.nii.gz"):
        with pytest.raises(HeaderError, match="regular file"):
            read_volume(path)


def test_rounded_quaternions_are_no_conflict(tmp_path):
    """A float32 quaternion is imprecise near 180 degrees; equal forms are still accepted."""
    rng = np.random.default_rng(1)
    for x, y in rng.uniform(-2e-3, 2e-3, (20, 2)):
        rotation = np.diag([-1.0, -1.0, 1.0]) @ _rotation(x, y)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = rotation * [1, 1, 2], [90, 120, -60]
        array = np.zeros((200, 220, 2), np.float32)
        array[100] = 1
        write_volume(tmp_path / "scan.nii", array, affine)
        np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").affine, affine, atol=1e-5)
        write_volume(tmp_path / "scan.nii", array, affine, codes=FormCodes(1, 0))  # the sform replaces a wrong qform
        np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").affine, affine, atol=0.005)


def _rotation(x, y):
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    return about_x @ about_y


def test_nan_is_read_as_0_if_asked_for(tmp_path):
    """It is 0 in the image's unit, whatever its intercept; the other voxels are as they were."""
    array = ARRAY.copy()
    array[:, 0] = np.nan
    path = patched(saved(tmp_path / "scan.nii", array), ("2f", 112, 2.0, 3.0))
    for verified in (False, True):
        voxels = read_volume(path, verified=verified, nan_as_zero=True).array
        np.testing.assert_allclose(voxels, np.where(np.isnan(array), 0, 2 * array + 3))
    with pytest.raises(IntensityError, match="NaN"):
        read_volume(path)
    with pytest.raises(IntensityError, match="every voxel is NaN"):
        read_volume(saved(tmp_path / "empty.nii", np.full_like(ARRAY, np.nan)), nan_as_zero=True)


@pytest.mark.parametrize("voxel", [np.nan, np.inf])
def test_a_volume_that_is_not_finite_is_not_written(tmp_path, voxel):
    """Neither the image nor its sidecar."""
    array = np.ones((4, 4, 4), np.float32)
    array[1, 1, 1] = voxel
    with pytest.raises(IntensityError, match=r"out\.nii\.gz: 1 voxels are NaN or infinite"):
        write_volume(tmp_path / "out.nii.gz", array, AFFINE, sidecar={})
    assert not list(tmp_path.iterdir())
