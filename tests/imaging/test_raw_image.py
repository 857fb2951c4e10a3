"""Digests, value range and checks of a raw file, from one pass over its bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_images import verify_image

from dualflow.errors import GeometryError, HeaderError, IntensityError
from dualflow.imaging.raw_image import check_scan, digest_image


def write(path: Path, seed: int, *, shape=(4, 5, 6), dtype=np.int16, shift=0.0, note=""):
    """Write a small image whose voxels depend on the seed only."""
    voxels = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    image = nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1.0]) + np.eye(4)[:, [3, 0, 1, 2]] * shift)
    image.header["descrip"] = note
    nib.save(image, path)
    return path


def voxels_digest(path):
    return digest_image(path).values_sha256


def test_the_digest_of_values_ignores_header_and_name(tmp_path):
    """The digest depends on values and shape, not on their type or byte order, affine, description or compression."""
    first = voxels_digest(write(tmp_path / "a.nii.gz", 1))
    assert voxels_digest(write(tmp_path / "b.nii", 1, shift=3.0, note="anonymised")) == first
    for dtype in ("<f4", "<f8", ">i2", "u1"):
        assert voxels_digest(write(tmp_path / "copy.nii", 1, dtype=dtype)) == first
    different = [
        write(tmp_path / "c.nii", 2),
        write(tmp_path / "d.nii", 1, shape=(5, 4, 6)),
        write(tmp_path / "f.nii", 1, shape=(4, 5, 6, 2)),
    ]
    assert len({first, *map(voxels_digest, different)}) == 4


def test_an_image_of_one_frame_has_the_digest_of_an_image(tmp_path):
    """Tools write a static PET with a fourth axis of length 1."""
    image = nib.load(write(tmp_path / "a.nii", 1))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), tmp_path / "b.nii")
    assert nib.load(tmp_path / "b.nii").ndim == 4
    assert voxels_digest(tmp_path / "b.nii") == voxels_digest(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "padded.nii", "members.nii.gz"])
def test_the_file_is_hashed_as_it_is_stored(tmp_path, name):
    """The file digest covers the compressed bytes, including bytes after the voxels."""
    path = write(tmp_path / name, 1)
    if name == "padded.nii":
        path.write_bytes(path.read_bytes() + bytes(3 << 20))
    if name == "members.nii.gz":
        path.write_bytes(path.read_bytes() + gzip.compress(b"tail") + bytes(100))
    digest = digest_image(path)
    assert digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest.size == path.stat().st_size
    voxels = np.asarray(nib.load(path).dataobj)
    assert (digest.minimum, digest.maximum) == (voxels.min(), voxels.max())


@pytest.mark.parametrize("damage", [b"", b"no image", "truncated", "compressed and truncated"])
def test_an_unreadable_file_has_no_digest(tmp_path, damage):
    """The error names the file; it is empty, no image, or truncated."""
    path = write(tmp_path / "a.nii", 1)
    whole = path.read_bytes()
    texts = {"truncated": whole[:-9], "compressed and truncated": gzip.compress(whole)[:-40]}
    path.write_bytes(texts.get(damage, damage))
    with pytest.raises(HeaderError, match=r"a\.nii"):
        digest_image(path)


def test_a_digest_is_current_until_the_file_changes(tmp_path):
    """Size and modification time identify the file; a missing file has no current digest."""
    path = write(tmp_path / "a.nii", 1)
    digest = digest_image(path)
    assert digest.is_current(path)
    os.utime(path, ns=(0, digest.mtime_ns + 1))
    assert not digest.is_current(path)
    path.unlink()
    assert not digest.is_current(path)


def saved(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [(np.nan, IntensityError, "NaN"), (np.inf, IntensityError, "infinite"), (0.0, IntensityError, "every voxel is 0")],
)
def test_values_are_checked_on_the_digest(tmp_path, value, error, words):
    """The check reads the header but not the voxels."""
    array = np.full((4, 5, 6), value, np.float32)
    if value:
        array[0] = 1
    path = saved(tmp_path / "a.nii.gz", array, np.eye(4))
    digest = digest_image(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:352]) + bytes(len(array.tobytes())))
    with pytest.raises(error, match=words):
        check_scan(path, digest)


@pytest.mark.parametrize(
    ("others", "words"), [((1, 2), None), ((np.inf, 2), "infinite"), ((3, 3), "is 3"), ((np.nan, np.nan), "is NaN")]
)
def test_nan_can_be_skipped(tmp_path, others, words):
    """The other voxels are checked as those of an image without NaN."""
    array = np.full((4, 5, 6), np.nan, np.float32)
    array[0], array[1] = others
    path = saved(tmp_path / "a.nii.gz", array, np.eye(4))
    digest = digest_image(path)
    with pytest.raises(IntensityError, match="NaN"):
        check_scan(path, digest)
    with pytest.raises(IntensityError, match=words) if words else nullcontext():
        check_scan(path, digest, skip_nan=True)


def test_a_series_may_have_frames_of_any_value(tmp_path):
    """Frames inside the window are checked when they are loaded."""
    frames = np.random.default_rng(0).random((4, 5, 6, 2), np.float32)
    frames[..., 0] = np.nan
    assert verify_image(saved(tmp_path / "a.nii", frames, np.eye(4))).sidecar == {}


def test_a_sheared_affine_is_refused(tmp_path):
    """The affine is checked before the voxels are loaded."""
    affine = np.eye(4)
    affine[0, 1] = 0.5
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 1
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(GeometryError, match="shear"):
        verify_image(tmp_path / "a.nii")


def test_the_digest_is_of_scaled_values(tmp_path):
    """A scaled image saved again as floats is a copy, and the same integers of another scale are none."""
    content, digests = write(tmp_path / "a.nii", 1).read_bytes(), []
    for slope in (0.5, 0.3):
        scaled = tmp_path / "scaled.nii"
        scaled.write_bytes(content[:112] + np.float32(slope).tobytes() + content[116:])
        image = nib.load(scaled)
        assert image.dataobj.slope == pytest.approx(slope)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), tmp_path / "floats.nii")
        assert voxels_digest(tmp_path / "floats.nii") == voxels_digest(scaled)
        digests.append(voxels_digest(scaled))
    assert len(set(digests)) == 2
