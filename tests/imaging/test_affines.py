"""Left stays left: every orientation and header case, through our reader and writer, as three libraries see it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from grids import CODES, affine_of, affines
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImage

from dualflow.errors import GeometryError
from dualflow.imaging.geometry import apply_map, corner_distance, from_sitk
from dualflow.imaging.volume import read_volume, write_volume

SHAPE = (7, 6, 5)
CORNER_MM = 0.01
MONAI = LoadImage(reader="NibabelReader", image_only=True)
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
# How qform and sform are coded (0: not), and what the second one is if it is not the affine itself.
HEADERS = {
    "sform": (0, 1, None),
    "qform": (1, 0, None),
    "equal": (1, 1, None),
    "differ": (1, 1, MIRROR),
    "none": (0, 0, None),
}


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def by_nibabel(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def by_simpleitk(path):
    return from_sitk(sitk.ReadImage(str(path)))


def by_monai(path):
    image = MONAI(path)
    return image.numpy(), image.affine.numpy()


READERS = {"nibabel": by_nibabel, "SimpleITK": by_simpleitk, "MONAI": by_monai}


def marked(affine):
    """An image of one bright voxel, at the corner that lies furthest left, and the place of that voxel."""
    ends = np.stack(np.meshgrid(*[(0, size - 1) for size in SHAPE], indexing="ij"), axis=-1).reshape(-1, 3)
    marker = tuple(ends[np.argmin(apply_map(affine, ends.astype(float))[:, 0])])
    array = np.zeros(SHAPE, np.float32)
    array[marker] = 1
    return array, marker


def save(path, array, affine, case):
    qform, sform, second = HEADERS[case]
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine if second is None else second @ affine, code=sform)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def assert_seen(path, reader, marker, affine):
    """`reader` finds the marker at its voxel, on the left, and every corner where `affine` has it."""
    array, seen = READERS[reader](path)
    found = np.argwhere(array == 1)
    assert found.tolist() == [[int(place) for place in marker]]
    assert corner_distance(seen, affine, SHAPE) <= CORNER_MM
    everywhere = apply_map(seen, np.argwhere(array >= 0).astype(float))[:, 0]
    assert apply_map(seen, found.astype(float))[0, 0] <= everywhere.min() + CORNER_MM


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("codes", CODES)
def test_no_flip(tmp_path, codes, case, reader):
    """What we read is what the library reads, what we write it reads alike; an ambiguous header is refused."""
    affine = affine_of(codes)
    array, marker = marked(affine)
    path = save(tmp_path / "in.nii", array, affine, case)
    if case in ("differ", "none"):
        with pytest.raises(GeometryError, match="apart" if case == "differ" else "both 0"):
            read_volume(path)
        return
    assert_seen(path, reader, marker, affine)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, array)
    assert corner_distance(volume.affine, affine, SHAPE) <= CORNER_MM
    write_volume(tmp_path / "out.nii", volume.array, volume.affine)
    assert_seen(tmp_path / "out.nii", reader, marker, affine)
    # Not in oblique grids: between two equally near axes rounding decides.
    assert nib.aff2axcodes(READERS[reader](tmp_path / "out.nii")[1]) == nib.aff2axcodes(affine)


def test_the_table_is_whole():
    """48 orientations, 5 headers, 3 readers: 720 cases."""
    assert len(set(CODES)) * len(HEADERS) * len(READERS) == 720


@settings(max_examples=300, deadline=None, derandomize=True)
@given(affine=affines(), case=st.sampled_from(["sform", "qform", "equal"]))
def test_no_flip_in_oblique_grids(tmp_path_factory, affine, case):
    """The same for any oblique, anisotropic grid of either handedness, half turns and their neighbours included."""
    folder = tmp_path_factory.mktemp("oblique", numbered=True)
    array, marker = marked(affine)
    volume = read_volume(save(folder / "in.nii", array, affine, case))
    # A qform alone holds a rotation near a half turn to a milliradian only.
    assert corner_distance(volume.affine, affine, SHAPE) <= (0.1 if case == "qform" else CORNER_MM)
    write_volume(folder / "out.nii", volume.array, volume.affine)
    for reader in READERS:
        assert_seen(folder / "out.nii", reader, marker, volume.affine)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(affine=affines())
def test_a_flip_between_the_forms_is_refused_in_oblique_grids(tmp_path_factory, affine):
    """A mirrored sform is never mistaken for rounding."""
    folder = tmp_path_factory.mktemp("mirrored", numbered=True)
    with pytest.raises(GeometryError, match="apart"):
        read_volume(save(folder / "in.nii", marked(affine)[0], affine, "differ"))
