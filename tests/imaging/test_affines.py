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
from nibabel.affines import apply_affine

from dualflow.errors import GeometryError
from dualflow.imaging.affines import MNI, SCANNER, check_affine, resolve_affine
from dualflow.imaging.geometry import corner_distance, from_sitk
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
    marker = tuple(ends[np.argmin(apply_affine(affine, ends.astype(float))[:, 0])])
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
    all_x = apply_affine(read_affine, np.argwhere(array >= 0).astype(float))[:, 0]
    assert apply_affine(read_affine, bright.astype(float))[0, 0] <= all_x.min() + CORNER_MM


def changed(*entries):
    """The affine of 2 mm voxels after changes (row, column, value)."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for row, column, value in entries:
        affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (changed((0, 0, 0.0101)), None),
        (changed((0, 0, 0.0099)), r"voxel edges are 0.0099, 2, 2 mm, expected 0.01 to 100 mm"),
        (changed((2, 2, 99.9)), None),
        (changed((2, 2, 100.1)), "expected 0.01 to 100 mm"),
        (changed((0, 0, 2e-6)), "expected 0.01 to 100 mm"),
        (changed((0, 0, 0.9e-6)), r"is singular \(voxel edges 9e-07, 2, 2 mm\)"),
        (changed((0, 0, 0)), "is singular"),
        (changed((0, 1, 2000), (1, 1, 1.99)), "is singular"),
        (changed((0, 1, 1000), (1, 1, 1.01)), "expected 0.01 to 100 mm"),
        (changed((0, 3, 10_000)), None),
        (changed((0, 3, -10_001)), r"reaches 1e\+04 mm, expected at most 10000 mm"),
        (changed((0, 1, 0.00199)), None),
        (changed((0, 1, -0.00201)), r"is sheared \(cosine 0.0010 between two axes\), expected at most 0.001"),
        (changed((2, 0, 1)), r"is sheared \(cosine 0.4472"),
        (changed((1, 1, np.nan)), "holds nan"),
        (changed((1, 3, -np.inf)), "holds -inf"),
    ],
)
def test_the_bounds_of_an_affine(affine, words):
    """Voxel edges, position, shear and independence of the axes are checked, each with its own message."""
    if words is None:
        check_affine(affine, "x")
    else:
        with pytest.raises(GeometryError, match=rf"^x: .*{words}"):
            check_affine(affine, "x")


def header(sform=None, qform=None, **fields):
    """A header with forms of code 1, or without."""
    result = nib.Nifti1Header()
    result.set_data_shape(SHAPE)
    result.set_zooms((2, 2, 2))
    result.set_qform(qform, 0 if qform is None else 1)
    result.set_sform(sform, 0 if sform is None else 1)
    for name, value in fields.items():
        result[name] = value
    return result


TWO_MM = changed()


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        (header(TWO_MM, changed((0, 3, 0.0999))), None),
        (header(TWO_MM, changed((0, 3, 0.1001))), r"corners 0.10 mm apart, expected at most 0.1 mm"),
        (header(TWO_MM, changed((0, 3, 5))), r"corners 5.00 mm apart, expected"),
        (header(changed((0, 0, -2), (0, 3, 12)), TWO_MM), "12.00 mm apart, one mirrored, expected"),
        (header(changed((0, 0, -2)), changed((0, 0, -2), (0, 3, 5))), "5.00 mm apart, expected"),
        (header(TWO_MM, pixdim=(1, 2.016, 2, 2, 1, 1, 1, 1)), None),
        (header(TWO_MM, pixdim=(1, 2.017, 2, 2, 1, 1, 1, 1)), "2.017, 2, 2 mm by pixdim and 2, 2, 2 mm by the sform"),
        (header(TWO_MM, pixdim=(1, 2, 2, 1.974, 1, 1, 1, 1)), "by pixdim"),
        (header(None, TWO_MM, pixdim=(0, 2, 2, 2, 1, 1, 1, 1)), None),
        (header(None, TWO_MM, pixdim=(2, 2, 2, 2, 1, 1, 1, 1)), r"pixdim\[0\] is 2, expected 1 or -1"),
        (header(None, TWO_MM, quatern_c=1.5), "quatern_b, c, d are 0, 1.5, 0, expected"),
        (header(None, None), "both 0"),
        (header(changed((0, 1, 1)), None), "scan: sform: the affine is sheared"),
        (header(None, changed((0, 3, 2e4))), "scan: qform: the affine reaches"),
        (header(TWO_MM, changed((0, 3, 2e4))), "scan: qform: the affine reaches"),
    ],
)
def test_the_tolerance_between_forms_and_voxel_edges(forms, words):
    """Corners agree within 0.1 mm, and edges to 0.1 mm over the image."""
    if words is None:
        np.testing.assert_allclose(resolve_affine(forms, SHAPE, "scan"), TWO_MM, atol=0.01)
    else:
        with pytest.raises(GeometryError, match=words):
            resolve_affine(forms, SHAPE, "scan")


def test_a_negative_handedness_mirrors_the_third_axis():
    """pixdim[0] = -1, as the standard says; 0 is read as 1."""
    mirrored = header(None, TWO_MM, pixdim=(-1, 2, 2, 2, 1, 1, 1, 1))
    np.testing.assert_allclose(resolve_affine(mirrored, SHAPE, "scan"), changed((2, 2, -2)))


def test_codes_of_outputs():
    """A scan is in scanner space, the model grid in that of the MNI template."""
    assert (tuple(SCANNER), tuple(MNI)) == ((1, 1), (4, 4))


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
