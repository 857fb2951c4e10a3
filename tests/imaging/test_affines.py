"""Left stays left: all orientations and header codes, through reader and writer, compared with three libraries."""

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
# Codes of qform and sform (0: unset), and the map from the qform to the sform if they differ.
HEADERS = {
    "sform": (0, 1, None),
    "qform": (1, 0, None),
    "equal": (1, 1, None),
    "differ": (1, 1, MIRROR),
    "none": (0, 0, None),
}


@pytest.fixture(autouse=True, scope="module")
def _no_fsync():
    """Skip fsync, because thousands of files are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def read_nibabel(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def read_simpleitk(path):
    return from_sitk(sitk.ReadImage(str(path)))


def read_monai(path):
    image = MONAI(path)
    return image.numpy(), image.affine.numpy()


READERS = {"nibabel": read_nibabel, "SimpleITK": read_simpleitk, "MONAI": read_monai}


def marked(affine):
    """Return an image with one bright voxel at its leftmost corner, and the index of that voxel."""
    ends = np.stack(np.meshgrid(*[(0, size - 1) for size in SHAPE], indexing="ij"), axis=-1).reshape(-1, 3)
    marker = tuple(ends[np.argmin(apply_map(affine, ends.astype(float))[:, 0])])
    array = np.zeros(SHAPE, np.float32)
    array[marker] = 1
    return array, marker


def save(path, array, affine, case):
    """Save an image with a header of HEADERS."""
    qform, sform, flip = HEADERS[case]
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine if flip is None else flip @ affine, code=sform)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def check_reader(path, reader, marker, affine):
    """Check that a reader gives the affine, and the marker at its voxel on the left."""
    array, read_affine = READERS[reader](path)
    bright = np.argwhere(array == 1)
    assert bright.tolist() == [[int(index) for index in marker]]
    assert corner_distance(read_affine, affine, SHAPE) <= CORNER_MM
    all_x = apply_map(read_affine, np.argwhere(array >= 0).astype(float))[:, 0]
    assert apply_map(read_affine, bright.astype(float))[0, 0] <= all_x.min() + CORNER_MM


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("codes", CODES)
def test_no_flip(tmp_path, codes, case, reader):
    """Reader and writer agree with each library; an ambiguous header is refused."""
    affine = affine_of(codes)
    array, marker = marked(affine)
    path = save(tmp_path / "in.nii", array, affine, case)
    if case in ("differ", "none"):
        with pytest.raises(GeometryError, match="apart" if case == "differ" else "both 0"):
            read_volume(path)
        return
    check_reader(path, reader, marker, affine)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, array)
    assert corner_distance(volume.affine, affine, SHAPE) <= CORNER_MM
    write_volume(tmp_path / "out.nii", volume.array, volume.affine)
    check_reader(tmp_path / "out.nii", reader, marker, affine)
    # Oblique grids are excluded, because rounding decides between two equally near axes.
    assert nib.aff2axcodes(READERS[reader](tmp_path / "out.nii")[1]) == nib.aff2axcodes(affine)


def test_all_cases_are_tested():
    """48 orientations, 5 headers, 3 readers: 720 cases."""
    assert len(set(CODES)) * len(HEADERS) * len(READERS) == 720


@settings(max_examples=300, deadline=None, derandomize=True)
@given(affine=affines(), case=st.sampled_from(["sform", "qform", "equal"]))
def test_no_flip_in_oblique_grids(tmp_path_factory, affine, case):
    """The same holds for oblique, anisotropic grids of either handedness, and for rotations near 180 degrees."""
    folder = tmp_path_factory.mktemp("oblique", numbered=True)
    array, marker = marked(affine)
    volume = read_volume(save(folder / "in.nii", array, affine, case))
    # A qform stores rotations near 180 degrees to a milliradian only.
    assert corner_distance(volume.affine, affine, SHAPE) <= (0.1 if case == "qform" else CORNER_MM)
    write_volume(folder / "out.nii", volume.array, volume.affine)
    for reader in READERS:
        check_reader(folder / "out.nii", reader, marker, volume.affine)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(affine=affines())
def test_a_flip_between_qform_and_sform_is_refused_in_oblique_grids(tmp_path_factory, affine):
    """A mirrored sform is not taken for a rounding error."""
    folder = tmp_path_factory.mktemp("mirrored", numbered=True)
    with pytest.raises(GeometryError, match="apart"):
        read_volume(save(folder / "in.nii", marked(affine)[0], affine, "differ"))
