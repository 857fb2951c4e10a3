"""The figure of a result: sides, planes, outline, windows and size."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

from dualflow.errors import GeometryError
from dualflow.imaging.figure_canvas import GAP
from dualflow.imaging.geometry import Affine, centred_affine
from dualflow.imaging.result_figure import JPEG_QUALITY, PLANES, TITLE_LINE, result_figure

SHAPE = (44, 52, 48)
AFFINE = centred_affine(np.array([5.0, -20.0, 15.0]), 4.0, SHAPE)
HOT = np.array([35.0, 20.0, 45.0])
"""World point of a bright ball: right, front and top of the centre."""


def points(affine: Affine, shape: tuple[int, ...]) -> np.ndarray:
    """World points `[I, J, K, 3]` of the voxels."""
    return np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def scan(affine: Affine = AFFINE, shape: tuple[int, ...] = SHAPE) -> dict[str, object]:
    """Arguments of a figure: a brain with values of 1 and a ball of 3 at HOT, on any grid."""
    world = points(affine, shape)
    middle = points(AFFINE, SHAPE).reshape(-1, 3).mean(axis=0)
    mask = np.linalg.norm((world - middle) / [66, 82, 70], axis=-1) < 1
    ball = np.linalg.norm(world - HOT, axis=-1) < 14
    mean = np.where(ball, 3.0, 1.0) * mask
    return {
        "source": (100 * mean + 20).astype(np.float32),
        "mean": mean.astype(np.float32),
        "std": (0.1 * mean).astype(np.float32),
        "affine": affine,
        "unit": "SUVR",
        "window": (0.0, 3.0),
        "title": "sub-01: ok",
        "mask": mask,
        "flagged": ball,
    }


def save(path, **arguments) -> None:
    """Save the figure as a conversion does."""
    result_figure(**arguments).save(path, quality=JPEG_QUALITY)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def planes(path, row: int = 1, rows: int = 3) -> list[np.ndarray]:
    """Sagittal, coronal and axial plane of one row, without labels and gaps."""
    picture = pixels(path)
    body = picture[TITLE_LINE:]
    strip = np.array_split(body, rows)[row][20:]
    x, y, _ = extent = np.array([66, 82, 70]) * 2 + 24.0
    scale = PLANES / (extent[1] + 2 * extent[0])
    edges = np.cumsum([0, y, x, x]) * scale
    return [strip[:, round(first) + 3 : round(last) + GAP] for first, last in pairwise(edges)]


def hot(plane: np.ndarray) -> tuple[float, float]:
    """Position of the brightest colour of the target's map: fractions of the height and the width."""
    colour = 255 * np.array(colormaps["magma"](1.0))[:3]
    near = np.abs(plane - colour).max(axis=-1) < 40
    rows, columns = np.nonzero(near)
    assert len(rows) > 50
    return rows.mean() / plane.shape[0], columns.mean() / plane.shape[1]


# Each order of the axes, with other directions.
GRIDS = list(zip(permutations(range(3)), product((-1, 1), repeat=3), strict=False))


@pytest.mark.parametrize(("order", "signs"), GRIDS)
def test_left_is_on_the_left_on_every_grid(tmp_path, order, signs):
    """A ball at the right, front and top lies right or front, and up, whatever axes the voxels are stored in."""
    middle = AFFINE[:3, :3] @ (np.array(SHAPE) - 1) / 2 + AFFINE[:3, 3]
    affine, shape = np.eye(4), np.ones(3, int)
    affine[:3, :3] = 0
    for axis, (world_axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world_axis, axis], shape[axis] = 4.0 * sign, SHAPE[world_axis]
    affine[:3, 3] = middle - affine[:3, :3] @ (shape - 1) / 2
    save(tmp_path / "a.jpg", **scan(affine, tuple(shape)))
    for plane in planes(tmp_path / "a.jpg"):
        row, column = hot(plane)
        assert row < 0.45
        assert column > 0.55


def test_oblique_and_anisotropic_grids_show_the_same_brain(tmp_path):
    """Thin and thick slices and a rotated head-coil frame give the picture of the straight isotropic grid."""
    angle = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = AFFINE[:3, :3] @ (np.array(SHAPE) - 1) / 2 + AFFINE[:3, 3]
    shape, spacing = (120, 120, 30), np.array([2.0, 2.0, 7.0])
    affine = rotation @ np.diag([*spacing, 1.0])
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    save(tmp_path / "straight.jpg", **scan())
    save(tmp_path / "oblique.jpg", **scan(affine, shape))
    for first, second in zip(planes(tmp_path / "straight.jpg"), planes(tmp_path / "oblique.jpg"), strict=True):
        assert hot(second) == pytest.approx(hot(first), abs=0.04)


def test_a_map_to_the_template_turns_the_planes(tmp_path):
    """The affine followed by a map to another world draws along the axes of that world."""
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    arguments = scan()
    save(tmp_path / "a.jpg", **arguments | {"affine": half_turn @ AFFINE})
    sagittal, coronal, axial = planes(tmp_path / "a.jpg")
    assert hot(coronal)[1] < 0.45
    assert hot(axial)[1] < 0.45
    assert hot(axial)[0] > 0.55
    assert hot(sagittal)[1] < 0.45


def test_the_region_is_outlined_in_every_row(tmp_path):
    """A flagged region has an outline in all planes and rows; an empty region and None have none."""

    def outlined(path) -> list[bool]:
        cyan = [(plane[..., 2] - plane[..., 0] > 90) & (plane[..., 1] > 150) for plane in planes(path, row=0)]
        return [bool(plane.sum() > 30) for plane in cyan]

    arguments = scan()
    save(tmp_path / "a.jpg", **arguments)
    assert outlined(tmp_path / "a.jpg") == [True] * 3
    empty = np.zeros(SHAPE, bool)
    save(tmp_path / "b.jpg", **arguments | {"flagged": empty})
    save(tmp_path / "c.jpg", **arguments | {"flagged": None})
    assert outlined(tmp_path / "b.jpg") == [False] * 3
    assert (tmp_path / "b.jpg").read_bytes() == (tmp_path / "c.jpg").read_bytes()


def test_the_planes_run_through_the_largest_flagged_region(tmp_path):
    """With a second, smaller region the planes still run through the first; its ball is in all of them."""
    arguments = scan()
    speck = np.linalg.norm(points(AFFINE, SHAPE) - (HOT - [70, 60, 50]), axis=-1) < 8
    save(tmp_path / "a.jpg", **arguments | {"flagged": arguments["flagged"] | speck})
    assert all(hot(plane)[0] < 0.45 for plane in planes(tmp_path / "a.jpg"))


def test_a_real_image_adds_itself_and_the_difference(tmp_path):
    """With a real image there are two more rows, and equal images have a white difference."""
    arguments = scan()
    save(tmp_path / "a.jpg", **arguments)
    save(tmp_path / "b.jpg", **arguments, real=arguments["mean"])
    first, second = (pixels(tmp_path / f"{name}.jpg").shape[0] for name in "ab")
    assert (second - TITLE_LINE) * 3 == pytest.approx((first - TITLE_LINE) * 5, abs=6)
    axial = planes(tmp_path / "b.jpg", row=3, rows=5)[2]
    assert (axial[axial.shape[0] // 3, axial.shape[1] // 3] > 235).all()


def test_an_unknown_standard_deviation_has_no_row(tmp_path):
    """The other rows are as they were."""
    save(tmp_path / "a.jpg", **scan())
    save(tmp_path / "b.jpg", **scan() | {"std": None})
    first, second = (pixels(tmp_path / f"{name}.jpg").shape[0] for name in "ab")
    assert (second - TITLE_LINE) * 3 == pytest.approx((first - TITLE_LINE) * 2, abs=6)


def test_values_outside_the_brain_are_hidden_in_results_only(tmp_path):
    """Values away from the mask appear in the row of the source and not in the others."""
    arguments = scan()
    outside = ~binary_dilation(arguments["mask"], iterations=2)
    noisy = {name: np.where(outside, 2.0, arguments[name]).astype(np.float32) for name in ("mean", "std")}
    save(tmp_path / "a.jpg", **arguments)
    save(tmp_path / "b.jpg", **arguments | noisy)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    save(tmp_path / "c.jpg", **arguments | {"source": np.where(outside, 200, arguments["source"])})
    first, second = (planes(tmp_path / f"{name}.jpg", row=0)[2] for name in "ac")
    assert np.abs(first - second)[5:20, 30:60].mean() > 60


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"mean": np.zeros(SHAPE, np.float32), "mask": None}, id="nothing"),
        pytest.param({"mask": np.zeros(SHAPE, bool)}, id="empty mask"),
        pytest.param({"std": np.zeros(SHAPE, np.float32)}, id="no spread"),
        pytest.param({"source": np.full(SHAPE, np.nan, np.float32)}, id="no source"),
        pytest.param({"flagged": np.arange(np.prod(SHAPE)).reshape(SHAPE) == 0}, id="one voxel in the corner"),
        pytest.param({"title": "$\\frac{" + "x y " * 100}, id="long title with signs of a formula"),
        pytest.param({"title": ""}, id="no title"),
        pytest.param({"unit": "$^"}, id="unit with signs of a formula"),
    ],
)
def test_implausible_input_is_drawn(tmp_path, change):
    """Empty, constant and unknown values give a figure without a warning."""
    save(tmp_path / "a.jpg", **scan() | change)
    assert pixels(tmp_path / "a.jpg").any()


@pytest.mark.parametrize("name", ["mean", "std", "mask", "flagged"])
def test_other_grids_are_refused(tmp_path, name):
    """An array of another shape is named with both shapes."""
    with pytest.raises(GeometryError, match=rf"{name} has shape \(2, 2, 2\), expected \(44, 52, 48\)"):
        save(tmp_path / "a.jpg", **scan() | {name: np.ones((2, 2, 2), bool)})


def test_figures_are_small_and_reproducible(tmp_path):
    """Equal input gives equal bytes below 150 kB even for noise, and no other file remains."""
    arguments = scan()
    noise = 1 + gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 0.7)
    arguments |= {name: (noise * arguments[name]).astype(np.float32) for name in ("source", "mean", "std")}
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / name, **arguments)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert (tmp_path / "a.jpg").stat().st_size < 150_000
    assert len(list(tmp_path.iterdir())) == 2
