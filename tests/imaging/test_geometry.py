"""Affines, resampling, and the conversion between RAS and SimpleITK's LPS."""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from grids import CODES, affine_of
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dualflow.errors import GeometryError
from dualflow.imaging import geometry
from dualflow.imaging.geometry import Volume
from dualflow.imaging.volume import read_volume, write_volume

SHAPE = (7, 6, 5)


def rotation(*angles):
    """Return a rotation matrix from Euler angles in radians."""
    return Rotation.from_euler("xyz", angles).as_matrix()


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.2, -0.3, 0.15)], ids=["straight", "oblique"])
def test_three_readers_agree_in_all_48_orientations(tmp_path, angles):
    """dualflow, nibabel and SimpleITK map the leftmost voxel to the same world point."""
    assert len(set(CODES)) == 48
    for codes in CODES:
        affine = affine_of(codes, rotation=rotation(*angles))
        array = np.zeros(SHAPE, np.float32)
        # The marker is the leftmost corner.
        ends = np.array(list(product(*((0, size - 1) for size in SHAPE))))
        marker = ends[np.argmin((ends @ affine[:3, :3].T)[:, 0])]
        array[tuple(marker)] = 1
        write_volume(tmp_path / "scan.nii", array, affine)
        volume = read_volume(tmp_path / "scan.nii")
        itk = sitk.ReadImage(str(tmp_path / "scan.nii"))
        ours = geometry.to_sitk(volume.array, volume.affine)
        point = apply_affine(volume.affine, np.argwhere(volume.array == 1))[0]
        assert point[0] == pytest.approx(geometry.corners(affine, SHAPE)[:, 0].min(), abs=0.01)
        by_nibabel = nib.affines.apply_affine(nib.load(tmp_path / "scan.nii").affine, marker)
        index = [int(i) for i in marker]
        for library_point in (
            by_nibabel,
            *(np.array(im.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1) for im in (itk, ours)),
        ):
            np.testing.assert_allclose(library_point, point, atol=0.01)
        assert itk.GetPixel(index) == ours.GetPixel(index) == 1


def test_to_sitk_and_back_changes_nothing():
    """Array and affine survive the conversion to SimpleITK and back."""
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    affine = affine_of("PSL", rotation=rotation(0.1, 0.2, 0.3))
    back, back_affine = geometry.from_sitk(geometry.to_sitk(array, affine))
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(back_affine, affine, atol=1e-9)


def test_a_map_survives_the_conversion_to_simpleitk():
    """The LPS transform of a RAS map moves LPS points accordingly, and converts back to the same map."""
    points_map = np.eye(4)
    points_map[:3] = np.random.default_rng(0).normal(size=(3, 4))
    transform = geometry.to_transform(points_map)
    point = np.array([3.0, -4.0, 5.0])
    moved = np.array(transform.TransformPoint((-3.0, 4.0, 5.0))) * (-1, -1, 1)
    np.testing.assert_allclose(moved, apply_affine(points_map, point[None])[0])
    np.testing.assert_allclose(geometry.from_transform(transform), points_map)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resample_reads_the_mapped_point(order):
    """A resampled voxel equals the volume at the mapped point; the test uses a linear ramp."""
    affine = affine_of("LPS", spacing=(2.0, 2.0, 2.0), rotation=rotation(0.1, 0.0, 0.2))
    shape = (30, 30, 30)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    slope = np.array([1.0, 2.0, -3.0])
    ramp = apply_affine(affine, index.reshape(-1, 3).astype(float)).reshape(*shape, 3) @ slope
    points_map = np.eye(4)
    points_map[:3, :3] = Rotation.from_euler("z", 0.3).as_matrix()
    points_map[:3, 3] = (1.0, 2.0, -3.0)
    centre = apply_affine(affine, np.array([[14.5, 14.5, 14.5]]))[0]
    out = geometry.centred_affine(apply_affine(np.linalg.inv(points_map), centre[None])[0], 2.0, (9, 9, 9))
    result = geometry.resample(Volume(ramp.astype(np.float32), affine), out, (9, 9, 9), points_map, order=order)
    voxels = np.stack(np.meshgrid(*map(np.arange, (9, 9, 9)), indexing="ij"), axis=-1).reshape(-1, 3).astype(float)
    expected = apply_affine(points_map, apply_affine(out, voxels)) @ slope
    tolerance = {0: 7.0, 1: 1e-2, 3: 0.1}[order]
    np.testing.assert_allclose(result.ravel(), expected, atol=tolerance)


@pytest.mark.parametrize("tiny", [1e-300, 6.8e-302, 1e-308])
def test_denormal_entries_of_an_affine_are_harmless(tiny):
    """ITK's matrix inversion fails with such entries, and would return background only."""
    array = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    affine = np.diag([3.93, 3.93, -3.93, 1.0])
    affine[:2, :2] += [[0, tiny], [-tiny, 0]]
    result = geometry.resample(Volume(array, affine), affine, array.shape, np.eye(4) + tiny * np.eye(4, k=1))
    np.testing.assert_allclose(result, array, atol=1e-5)


def test_voxels_outside_the_volume_are_background():
    """Voxels outside the field of view have the background value."""
    volume = Volume(np.ones((4, 4, 4), np.float32), np.eye(4))
    result = geometry.resample(volume, np.eye(4), (8, 4, 4), background=-5.0)
    assert (result[:4] == 1).all()
    assert (result[5:] == -5).all()
    assert (geometry.resample(volume, np.eye(4), (8, 4, 4))[5:] == 0).all()


def test_round_trip_of_a_smooth_image():
    """A smooth image survives resampling from 1.2 mm to 4 mm and back with r > 0.99."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(80, 80, 80)), 6).astype(np.float32)
    affine = np.diag([-1.2, -1.2, 1.2, 1.0])
    affine[:3, 3] = (48, 48, -48)
    rigid = np.eye(4)
    rigid[:3, :3] = Rotation.from_euler("xyz", (0.1, 0.2, 0.1)).as_matrix()
    grid = geometry.centred_affine(np.zeros(3), 4.0, (36, 36, 36))
    coarse = geometry.resample(Volume(smooth, affine), grid, (36, 36, 36), rigid)
    back = geometry.resample(Volume(coarse, grid), affine, smooth.shape, np.linalg.inv(rigid))
    inside = (slice(8, -8),) * 3
    assert np.corrcoef(back[inside].ravel(), smooth[inside].ravel())[0, 1] > 0.99


def test_coarsening_does_not_alias_and_labels_stay_labels():
    """A pattern finer than the new grid averages out; order 0 creates no new values."""
    stripes = np.zeros((64, 64, 64), np.float32)
    stripes[::2] = 1
    grid = geometry.centred_affine(np.full(3, 31.5), 4.5, (10, 10, 10))
    coarse = geometry.resample(Volume(stripes, np.eye(4)), grid, (10, 10, 10))
    assert np.abs(coarse - 0.5).max() < 0.05
    assert set(np.unique(geometry.resample(Volume(stripes, np.eye(4)), grid, (10, 10, 10), order=0))) <= {0.0, 1.0}


def test_the_sform_takes_precedence(tmp_path):
    """The sform is used if both are set and agree within tolerance; the qform is used if it is the only one."""
    shifted = np.eye(4)
    shifted[0, 3] = 0.05
    image = nib.Nifti1Image(np.arange(210, dtype=np.float32).reshape(SHAPE), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(shifted, 1)
    nib.save(image, tmp_path / "both.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "both.nii").affine, np.eye(4))
    image.set_sform(np.eye(4), 0)
    nib.save(image, tmp_path / "qform.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "qform.nii").affine, shifted)


def test_a_flip_between_qform_and_sform_is_refused(tmp_path):
    """A qform and an sform of opposite handedness would silently swap left and right."""
    image = nib.Nifti1Image(np.arange(210, dtype=np.float32).reshape(SHAPE), np.eye(4))
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 1)
    image.set_qform(np.eye(4), 1)
    nib.save(image, tmp_path / "flip.nii")
    with pytest.raises(GeometryError, match="apart"):
        read_volume(tmp_path / "flip.nii")


def test_grids_and_points():
    """Corners and distances of a grid in mm."""
    affine = affine_of("RAS", spacing=(1.0, 2.0, 4.0), origin=(10.0, 20.0, 30.0))
    corners = geometry.corners(affine, SHAPE)
    assert corners.shape == (8, 3)
    np.testing.assert_allclose((corners.min(0), corners.max(0)), ((10, 20, 30), (16, 30, 46)))
    shifted, stretched = affine.copy(), affine.copy()
    shifted[:3, 3] += (3, 0, 4)
    stretched[0, 0] = 1.5
    assert geometry.corner_distance(affine, shifted, SHAPE) == pytest.approx(5)
    assert geometry.corner_distance(affine, stretched, SHAPE) == pytest.approx(3)
    grid = Volume(np.zeros(SHAPE, np.float32), affine).grid
    assert grid[1] == SHAPE
    assert grid[0] is affine


def test_a_centred_grid_has_its_centre():
    """The middle of the outermost voxels is the centre, for even and odd sizes."""
    affine = geometry.centred_affine(np.array([1.0, -2.0, 3.0]), 4.0, (2, 5, 6))
    np.testing.assert_allclose(np.diag(affine), (4, 4, 4, 1))
    np.testing.assert_allclose(geometry.corners(affine, (2, 5, 6)).mean(0), (1, -2, 3))


def test_smoothing_has_the_width_in_mm():
    """A point becomes a Gaussian of this full width at half maximum along axes of different spacing."""
    array = np.zeros((41, 41, 41), np.float32)
    array[20, 20, 20] = 1
    volume = Volume(array, np.diag([1.0, 2.0, 1.0, 1.0]))
    assert geometry.smooth(volume, 0) is volume
    smooth = geometry.smooth(volume, 8.0).array
    assert smooth[24, 20, 20] / smooth[20, 20, 20] == pytest.approx(0.5, abs=1e-3)
    assert smooth[20, 22, 20] / smooth[20, 20, 20] == pytest.approx(0.5, abs=1e-3)
    edge = geometry.smooth(Volume(np.ones((5, 5, 5), np.float32), np.eye(4)), 6.0)
    np.testing.assert_allclose(edge.array, 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((8, 8, 8), 4.0, (4, 4, 2)),
        ((8, 8, 8), 0.5, (8, 8, 8)),
        ((3, 8, 8), 40.0, (3, 2, 2)),
        ((8, 8, 9), 3.2, (4, 4, 3)),
    ],
)
def test_shrinking_averages_blocks(shape, spacing, expected):
    """Blocks have about the spacing; two voxels remain, and an axis of three is not halved."""
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    image = geometry.shrink(Volume(array, np.diag([2.0, 2.0, 1.0, 1.0])), spacing)
    assert image.GetSize() == expected
    assert sitk.GetArrayFromImage(image).mean() == pytest.approx(array[: shape[0]].mean(), rel=1e-3)


@pytest.mark.parametrize(("ratio", "expected"), [(1.09, 1.0), (1.2, 0.989)])
def test_only_a_clearly_coarser_grid_is_smoothed(ratio, expected):
    """Below a ratio of 1.1 the image is interpolated without a Gaussian, which has the width of the difference."""
    array = np.zeros((33, 33, 33), np.float32)
    array[16, 16, 16] = 1
    grid = geometry.centred_affine(np.full(3, 16.0), ratio, (29, 29, 29))
    result = geometry.resample(Volume(array, np.eye(4)), grid, (29, 29, 29))
    assert result[14, 14, 14] == pytest.approx(expected, abs=1e-3)


def test_the_gaussian_has_the_difference_of_the_widths():
    """On a grid of 3 mm, a point of 1 mm keeps the mean that a Gaussian with a FWHM of sqrt(8) mm has there."""
    array = np.zeros((33, 33, 33), np.float32)
    array[16, 16, 16] = 1
    grid = np.diag([3.0, 1.0, 1.0, 1.0])
    grid[:3, 3] = (1.0, 0.0, 0.0)
    result = geometry.resample(Volume(array, np.eye(4)), grid, (11, 33, 33))
    sigma = np.sqrt(8) / geometry.FWHM
    assert result[5, 16, 16] == pytest.approx(1 / (sigma * np.sqrt(2 * np.pi)), rel=0.01)
    assert result[4, 16, 16] == pytest.approx(result[5, 16, 16] * np.exp(-9 / 2 / sigma**2), rel=0.05)
    assert (result[5, 15, 16], result[5, 16, 17]) == (0, 0)  # the other axes are not coarser


def test_resampling_is_reproducible():
    """ITK sums in one thread."""
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
    assert sitk.ResampleImageFilter().GetNumberOfThreads() == 1
