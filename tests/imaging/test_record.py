"""Resampling from the native grid to the model grid and back, for random grids and alignments."""

from __future__ import annotations

import json
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from grids import CODES, affine_of, centred, numbers, rotations
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dualflow.config import PreprocessConfig
from dualflow.imaging.geometry import Volume, centred_affine, corner_distance
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.record import resample_to_grid, to_native
from dualflow.imaging.volume import read_volume

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
FINE, *COARSE = (
    model_grid(PreprocessConfig(spacing_mm=spacing, shape=shape))
    for spacing, shape in ((2, (96, 112, 96)), (4, (48, 56, 48)), (7.5, (26, 30, 26)))
)
CENTRE = apply_affine(FINE[0], (np.array([FINE[1]]) - 1) / 2)[0]


def properties(examples):
    """Return settings for reproducible examples without a time limit."""
    return settings(max_examples=examples, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Scan:
    """A native grid and its alignment to the template."""

    affine: np.ndarray
    shape: tuple[int, int, int]
    to_template: np.ndarray

    def record(self, grid):
        """Return the record of preprocessing, read back from JSON."""
        grids = {
            name: {"affine": affine.tolist(), "shape": list(shape)}
            for name, (affine, shape) in {"grid": grid, "native_grid": (self.affine, self.shape)}.items()
        }
        images = {"target": None, "extra_sources": {}}
        return json.loads(json.dumps(grids | images | {"source_to_template": self.to_template.tolist()}))

    def sample(self, field):
        """Evaluate a function of template points `[N, 3]` at the scan's voxels."""
        index = np.indices(self.shape).reshape(3, -1).T.astype(float)
        return field(apply_affine(self.to_template @ self.affine, index)).reshape(self.shape)


@st.composite
def scans(draw):
    """Draw grids of 110 to 180 mm and 28 to 56 voxels per axis with an affine alignment."""
    shape = draw(st.tuples(*[st.integers(28, 56)] * 3))
    spacing = np.array(draw(numbers(110, 180, 3))) / shape
    rotation = draw(rotations() | st.just(np.eye(3)))
    middle = np.array(draw(numbers(-100, 100, 3)))
    affine = centred(affine_of(draw(st.sampled_from(CODES)), spacing, rotation=rotation), shape, middle)
    to_template = np.eye(4)
    tilt = Rotation.from_euler("xyz", draw(numbers(-30, 30, 3)), degrees=True).as_matrix()
    shear = np.triu(np.full((3, 3), draw(st.floats(-0.05, 0.05))), 1)
    to_template[:3, :3] = tilt @ (np.diag(draw(numbers(0.85, 1.15, 3))) + shear)
    to_template[:3, 3] = np.array(draw(numbers(-10, 10, 3))) + CENTRE - to_template[:3, :3] @ middle
    return Scan(affine, shape, to_template)


@st.composite
def files(draw):
    """Draw the voxel type, scale and seed of a stored field."""
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "scale": draw(st.floats(1e-3, 1e4)),
        "seed": draw(st.integers(0, 999)),
    }


def waves(seed):
    """Return a field of four waves of 60 to 150 mm wavelength."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(4, 3))
    vectors *= 2 * np.pi / rng.uniform(60, 150, (4, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, 4)
    return lambda points: np.cos(points @ vectors.T + phases).sum(axis=1)


def round_trip(volume, scan, grid):
    """Resample to the model grid and back, and check the grids."""
    record = scan.record(grid)
    on_grid = resample_to_grid(volume, record, grid, world="source")
    assert on_grid.shape == grid[1]
    native, affine = to_native(on_grid, record, background=0.0)
    assert native.shape == scan.shape
    assert corner_distance(affine, scan.affine, scan.shape) < 1e-6
    return native


def stored(path, array, affine, dtype):
    """Store an image with a voxel type and read it back; integers have slope and intercept."""
    image = nib.Nifti1Image(array, affine)
    image.set_data_dtype(dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return read_volume(path)


def check_smooth(tmp_path_factory, grid, scan, dtype, scale, seed):
    """Check that a smooth field survives with r > 0.99 in the common field of view."""
    field = scale * scan.sample(waves(seed))
    volume = stored(tmp_path_factory.mktemp("scan") / "in.nii", field, scan.affine, dtype)
    back = round_trip(volume, scan, grid)
    ones = Volume(np.ones(scan.shape, np.float32), scan.affine)
    inside = round_trip(ones, scan, grid) > 0.999
    assert inside.sum() > 2000
    assert np.corrcoef(back[inside], field[inside])[0, 1] > 0.99


def check_landmark(grid, scan, offset):
    """Check that a landmark moves by less than half a voxel of the coarser grid."""
    coarsest = max(voxel_sizes(scan.affine).max(), voxel_sizes(grid[0]).max())
    landmark = CENTRE + offset

    def blob(points):
        return np.exp(-(((points - landmark) / (1.5 * coarsest)) ** 2).sum(axis=1) / 2)

    back = round_trip(Volume(scan.sample(blob).astype(np.float32), scan.affine), scan, grid)
    bright = np.argwhere(back > 0.3 * back.max())
    estimated = np.average(apply_affine(scan.affine, bright.astype(float)), axis=0, weights=back[tuple(bright.T)])
    expected = apply_affine(np.linalg.inv(scan.to_template), landmark[None])[0]
    assert np.linalg.norm(estimated - expected) <= coarsest / 2


@properties(80)
@given(grid=st.sampled_from(COARSE), scan=scans(), file=files())
def test_a_smooth_field_survives_the_round_trip(tmp_path_factory, grid, scan, file):
    """The correlation exceeds 0.99 for every grid, alignment and voxel type."""
    check_smooth(tmp_path_factory, grid, scan, **file)


@properties(80)
@given(grid=st.sampled_from(COARSE), scan=scans(), offset=numbers(-20, 20, 3))
def test_a_landmark_survives_the_round_trip(grid, scan, offset):
    """The landmark moves by less than half a voxel of the coarser grid."""
    check_landmark(grid, scan, offset)


@properties(4)
@given(scan=scans(), file=files(), offset=numbers(-20, 20, 3))
def test_the_round_trip_at_2_mm(tmp_path_factory, scan, file, offset):
    """Field and landmark survive on the fine grid."""
    check_smooth(tmp_path_factory, FINE, scan, **file)
    check_landmark(FINE, scan, offset)


def interpolated(array, affine, grid, points_map):
    """Interpolate an array at the mapped points of a grid with SciPy; return inner values and their mask."""
    to_index = np.linalg.inv(affine) @ points_map @ grid[0]
    index = apply_affine(to_index, np.indices(grid[1]).reshape(3, -1).T.astype(float))
    inside = ((index > 0.01) & (index < np.array(array.shape) - 1.01)).all(axis=1)
    return map_coordinates(array, index[inside].T, order=1), inside.reshape(grid[1])


@properties(20)
@given(scan=scans(), seed=st.integers(0, 999))
def test_each_direction_interpolates_once(scan, seed):
    """Noise has the values of a single linear interpolation; a second one would smooth it."""
    rng = np.random.default_rng(seed)
    noise, to_native_map = rng.normal(size=scan.shape).astype(np.float32), np.linalg.inv(scan.to_template)
    fine = centred_affine(CENTRE, 1.5, (20, 20, 20)), (20, 20, 20)
    on_grid = resample_to_grid(Volume(noise, scan.affine), scan.record(fine), fine, world="source")
    expected, inside = interpolated(noise, scan.affine, fine, to_native_map)
    np.testing.assert_allclose(on_grid[inside], expected, atol=1e-3)
    affine, shape = COARSE[-1]
    noise = rng.normal(size=shape).astype(np.float32)
    native, _ = to_native(noise, scan.record((affine, shape)), background=0.0)
    expected, inside = interpolated(noise, affine, (scan.affine, scan.shape), scan.to_template)
    np.testing.assert_allclose(native[inside], expected, atol=1e-3)


@properties(30)
@given(grid=st.sampled_from(COARSE), source=scans(), target=scans(), seed=st.integers(0, 999))
def test_source_and_target_agree_on_the_model_grid(grid, source, target, seed):
    """Two scans of the same field on different native grids agree in their common field of view."""
    to_source = np.linalg.inv(source.to_template) @ target.to_template
    record = source.record(grid) | {"target": {"file": "x.nii"}, "target_to_source": to_source.tolist()}
    pair = {"source": source, "target": target}
    images, coverage = (
        {
            world: resample_to_grid(
                Volume(scan.sample(field).astype(np.float32), scan.affine), record, grid, world=world
            )
            for world, scan in pair.items()
        }
        for field in (waves(seed), lambda points: np.ones(len(points)))
    )
    inside = np.minimum(coverage["source"], coverage["target"]) > 0.999
    assert inside.sum() > 500
    assert np.corrcoef(images["source"][inside], images["target"][inside])[0, 1] > 0.99
