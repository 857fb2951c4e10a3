"""Native grid to model grid and back, for any scanner's grid and any alignment: what is smooth or marked comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from grids import CODES, affine_of, centred, numbers, rotations
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dualflow.config import PreprocessConfig
from dualflow.imaging.geometry import Volume, apply_map, centred_affine, corner_distance, spacing_of
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.record import resample_to_grid, to_native
from dualflow.imaging.volume import read_volume

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
FINE, *COARSE = (
    model_grid(PreprocessConfig(spacing_mm=spacing, shape=shape))
    for spacing, shape in ((2, (96, 112, 96)), (4, (48, 56, 48)), (7.5, (26, 30, 26)))
)
CENTRE = apply_map(FINE[0], (np.array([FINE[1]]) - 1) / 2)[0]


def properties(examples):
    """The same examples each time, however long each takes."""
    return settings(max_examples=examples, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Scan:
    """A scanner's grid, and how it lies in the template."""

    affine: np.ndarray
    shape: tuple[int, int, int]
    to_template: np.ndarray

    def record(self, grid):
        """The record that preprocessing would keep, as the file gives it back."""
        grids = {
            name: {"affine": affine.tolist(), "shape": list(shape)}
            for name, (affine, shape) in {"grid": grid, "native_grid": (self.affine, self.shape)}.items()
        }
        others = {"target": None, "extra_sources": {}}
        return json.loads(json.dumps(grids | others | {"source_to_template": self.to_template.tolist()}))

    def seen(self, field):
        """Values of `field`, a function of template points `[N, 3]`, in the scan's voxels."""
        index = np.indices(self.shape).reshape(3, -1).T.astype(float)
        return field(apply_map(self.to_template @ self.affine, index)).reshape(self.shape)


@st.composite
def scans(draw):
    """Grids of 110 to 180 mm along each axis with 28 to 56 voxels, anywhere, under an affine alignment."""
    shape = draw(st.tuples(*[st.integers(28, 56)] * 3))
    spacing = np.array(draw(numbers(110, 180, 3))) / shape
    turn = draw(rotations() | st.just(np.eye(3)))
    middle = np.array(draw(numbers(-100, 100, 3)))
    affine = centred(affine_of(draw(st.sampled_from(CODES)), spacing, turn=turn), shape, middle)
    to_template = np.eye(4)
    tilt = Rotation.from_euler("xyz", draw(numbers(-30, 30, 3)), degrees=True).as_matrix()
    shear = np.triu(np.full((3, 3), draw(st.floats(-0.05, 0.05))), 1)
    to_template[:3, :3] = tilt @ (np.diag(draw(numbers(0.85, 1.15, 3))) + shear)
    to_template[:3, 3] = np.array(draw(numbers(-10, 10, 3))) + CENTRE - to_template[:3, :3] @ middle
    return Scan(affine, shape, to_template)


@st.composite
def files(draw):
    """How a field is stored: voxel type, size of its values, and which field it is."""
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "size": draw(st.floats(1e-3, 1e4)),
        "seed": draw(st.integers(0, 999)),
    }


def waves(seed):
    """A field of four waves, 60 to 150 mm long."""
    draw = np.random.default_rng(seed)
    ways = draw.normal(size=(4, 3))
    ways *= 2 * np.pi / draw.uniform(60, 150, (4, 1)) / np.linalg.norm(ways, axis=1, keepdims=True)
    phases = draw.uniform(0, 2 * np.pi, 4)
    return lambda points: np.cos(points @ ways.T + phases).sum(axis=1)


def there_and_back(volume, scan, grid):
    record = scan.record(grid)
    on_grid = resample_to_grid(volume, record, grid, world="source")
    assert on_grid.shape == grid[1]
    native, affine = to_native(on_grid, record, background=0.0)
    assert native.shape == scan.shape
    assert corner_distance(affine, scan.affine, scan.shape) < 1e-6
    return native


def stored(path, array, affine, dtype):
    """The image as a file of `dtype` holds it, scaled by slope and intercept where that is an integer."""
    image = nib.Nifti1Image(array, affine)
    image.set_data_dtype(dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return read_volume(path)


def check_smooth(tmp_path_factory, grid, scan, dtype, size, seed):
    field = size * scan.seen(waves(seed))
    volume = stored(tmp_path_factory.mktemp("scan") / "in.nii", field, scan.affine, dtype)
    back = there_and_back(volume, scan, grid)
    ones = Volume(np.ones(scan.shape, np.float32), scan.affine)
    inside = there_and_back(ones, scan, grid) > 0.999
    assert inside.sum() > 2000
    assert np.corrcoef(back[inside], field[inside])[0, 1] > 0.99


def check_landmark(grid, scan, offset):
    coarsest = max(spacing_of(scan.affine).max(), spacing_of(grid[0]).max())
    place = CENTRE + offset

    def blob(points):
        return np.exp(-(((points - place) / (1.5 * coarsest)) ** 2).sum(axis=1) / 2)

    back = there_and_back(Volume(scan.seen(blob).astype(np.float32), scan.affine), scan, grid)
    bright = np.argwhere(back > 0.3 * back.max())
    found = np.average(apply_map(scan.affine, bright.astype(float)), axis=0, weights=back[tuple(bright.T)])
    expected = apply_map(np.linalg.inv(scan.to_template), place[None])[0]
    assert np.linalg.norm(found - expected) <= coarsest / 2


@properties(80)
@given(grid=st.sampled_from(COARSE), scan=scans(), file=files())
def test_a_smooth_field_comes_back(tmp_path_factory, grid, scan, file):
    """With r > 0.99 inside the overlap, whatever the grid, the alignment and the type of the stored voxels."""
    check_smooth(tmp_path_factory, grid, scan, **file)


@properties(80)
@given(grid=st.sampled_from(COARSE), scan=scans(), offset=numbers(-20, 20, 3))
def test_a_landmark_comes_back(grid, scan, offset):
    """Within half a voxel of the coarser grid."""
    check_landmark(grid, scan, offset)


@properties(4)
@given(scan=scans(), file=files(), offset=numbers(-20, 20, 3))
def test_both_come_back_at_2_mm(tmp_path_factory, scan, file, offset):
    """The same on the fine grid."""
    check_smooth(tmp_path_factory, FINE, scan, **file)
    check_landmark(FINE, scan, offset)


def interpolated(array, affine, grid, points_map):
    """Values of `array` at the mapped points of a grid, by SciPy, and where these lie inside it."""
    to_index = np.linalg.inv(affine) @ points_map @ grid[0]
    index = apply_map(to_index, np.indices(grid[1]).reshape(3, -1).T.astype(float))
    inside = ((index > 0.01) & (index < np.array(array.shape) - 1.01)).all(axis=1)
    return map_coordinates(array, index[inside].T, order=1), inside.reshape(grid[1])


@properties(20)
@given(scan=scans(), seed=st.integers(0, 999))
def test_there_is_one_interpolation_each_way(scan, seed):
    """Noise, which a second interpolation would smooth, has the very values that one linear interpolation gives."""
    draw = np.random.default_rng(seed)
    noise, back = draw.normal(size=scan.shape).astype(np.float32), np.linalg.inv(scan.to_template)
    fine = centred_affine(CENTRE, 1.5, (20, 20, 20)), (20, 20, 20)
    there = resample_to_grid(Volume(noise, scan.affine), scan.record(fine), fine, world="source")
    expected, inside = interpolated(noise, scan.affine, fine, back)
    np.testing.assert_allclose(there[inside], expected, atol=1e-3)
    affine, shape = COARSE[-1]
    noise = draw.normal(size=shape).astype(np.float32)
    native, _ = to_native(noise, scan.record((affine, shape)), background=0.0)
    expected, inside = interpolated(noise, affine, (scan.affine, scan.shape), scan.to_template)
    np.testing.assert_allclose(native[inside], expected, atol=1e-3)


@properties(30)
@given(grid=st.sampled_from(COARSE), source=scans(), target=scans(), seed=st.integers(0, 999))
def test_source_and_target_meet_on_the_model_grid(grid, source, target, seed):
    """Two scans of one field on grids of their own show the same where both do, through the source's alignment."""
    to_source = np.linalg.inv(source.to_template) @ target.to_template
    record = source.record(grid) | {"target": {"file": "x.nii"}, "target_to_source": to_source.tolist()}
    pair = {"source": source, "target": target}
    seen, covered = (
        {
            world: resample_to_grid(Volume(scan.seen(field).astype(np.float32), scan.affine), record, grid, world=world)
            for world, scan in pair.items()
        }
        for field in (waves(seed), lambda points: np.ones(len(points)))
    )
    inside = np.minimum(covered["source"], covered["target"]) > 0.999
    assert inside.sum() > 500
    assert np.corrcoef(seen["source"][inside], seen["target"][inside])[0, 1] > 0.99
