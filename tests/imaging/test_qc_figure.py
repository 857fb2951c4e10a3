"""The picture of a scan is small, is the same each time, and shows what a person has to see."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from dualflow.imaging.qc_figure import HISTOGRAM, Image, _edges, save_figure

SHAPE = (48, 57, 51)


@pytest.fixture(scope="module")
def head():
    """A bright ball as brain inside a fainter skull, and the ball's mask."""
    middle = (np.array(SHAPE) - 1) / 2
    distance = np.sqrt(((np.stack(np.indices(SHAPE), axis=-1) - middle) ** 2).sum(axis=-1))
    noise = np.random.default_rng(0).normal(0, 2, SHAPE)
    values = gaussian_filter(100.0 * (distance < 16) + 40.0 * ((distance > 19) & (distance < 22)), 0.7) + noise
    return Image("T1w", values.astype(np.float32)), distance < 16


def pixels(path) -> np.ndarray:
    with Pillow.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def coloured(picture: np.ndarray, red: bool) -> np.ndarray:
    """Where a line is: reddish for the mask's outline, bluish for edges."""
    difference = picture[..., 0] - picture[..., 2]
    return difference > 60 if red else difference < -60


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_row_per_image(head, tmp_path, others):
    """The source has one row, every other image two, all of the same height; without a target there is one row."""
    source, mask = head
    images = [Image(f"image {index}", source.values, np.roll(source.values, 5, axis=0)) for index in range(others)]
    save_figure(tmp_path / "one.jpg", source, [], mask)
    save_figure(tmp_path / "all.jpg", source, images, mask)
    one, picture = pixels(tmp_path / "one.jpg"), pixels(tmp_path / "all.jpg")
    assert picture.shape[1] == one.shape[1]
    assert picture.shape[0] == pytest.approx((1 + 2 * others) * one.shape[0], abs=2)


def test_outline_on_the_source_and_edges_on_the_others(head, tmp_path):
    """Red lines lie in the first row alone, blue ones in the others alone."""
    source, mask = head
    save_figure(tmp_path / "a.jpg", source, [Image("FLAIR", source.values, source.values)], mask)
    rows = np.array_split(pixels(tmp_path / "a.jpg"), 3)
    assert [bool(coloured(row, red=True).sum() > 100) for row in rows] == [True, False, False]
    assert [bool(coloured(row, red=False).sum() > 100) for row in rows] == [False, True, True]


def test_an_image_that_was_not_aligned_has_one_row(head, tmp_path):
    """Where alignment is taken on trust there is nothing to compare with."""
    source, mask = head
    trusted = Image("PET", source.values, colours="inferno")
    assert [label for label, _ in trusted.rows] == ["PET as it came"]
    save_figure(tmp_path / "a.jpg", source, [trusted], mask)
    assert pixels(tmp_path / "a.jpg").shape[0] < 400


def test_edges_are_where_the_source_changes(head):
    """The lines follow the border of the brain: a zero crossing within a voxel of the mask's surface."""
    source, mask = head
    edges = _edges(source.values, mask)
    line = edges[:, SHAPE[1] // 2, SHAPE[2] // 2]
    found = np.flatnonzero(np.diff(np.sign(line)) * np.isfinite(line[1:]) * np.isfinite(line[:-1]))
    border = np.flatnonzero(np.diff(mask[:, SHAPE[1] // 2, SHAPE[2] // 2].astype(int)))
    assert all(np.abs(found - place).min() <= 1 for place in border)
    assert np.isnan(edges[0, 0, 0])


def test_the_histogram_follows_the_values_inside_the_mask(head, tmp_path):
    """Values outside the mask change nothing of it; before alignment, background inside the mask shows at its left."""
    source, mask = head
    outside = Image("T1w", np.where(mask, source.values, 0).astype(np.float32))
    for name, image in (("a", source), ("b", outside)):
        save_figure(tmp_path / f"{name}.jpg", image, [], mask)
    first, second = (pixels(tmp_path / f"{name}.jpg")[:, -HISTOGRAM:] for name in "ab")
    assert np.abs(first - second).max() < 40  # what JPEG leaves of the planes beside it
    missed = Image("PET", source.values, np.roll(source.values, 20, axis=0))
    save_figure(tmp_path / "c.jpg", source, [missed], mask)
    _, before, after = np.array_split(pixels(tmp_path / "c.jpg")[:, -HISTOGRAM:].mean(axis=-1) > 100, 3)
    left = slice(0, HISTOGRAM // 4)
    assert before[:, left].sum() > 2 * after[:, left].sum()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda values: np.zeros_like(values), id="zero"),
        pytest.param(lambda values: np.full_like(values, -7), id="constant and negative"),
        pytest.param(lambda values: values - 60, id="partly negative"),
        pytest.param(lambda values: values * 1e6, id="large"),
    ],
)
def test_any_values_are_drawn(head, tmp_path, change):
    """Constant, negative and huge images give a picture without a warning; it can show what is wrong with them."""
    source, mask = head
    values = change(source.values)
    save_figure(tmp_path / "a.jpg", source, [Image("odd", values, values)], mask)
    save_figure(tmp_path / "b.jpg", Image("odd", values), [], mask)
    assert pixels(tmp_path / "a.jpg").any()


def test_it_is_small_and_the_same_each_time(head, tmp_path):
    """Hundreds fit on one page, and equal scans give equal bytes; nothing else is left in the folder."""
    source, mask = head
    for name in ("a.jpg", "b.jpg"):
        save_figure(tmp_path / name, source, [Image("PET", source.values, source.values, "inferno")], mask)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert (tmp_path / "a.jpg").stat().st_size < 60_000
    assert len(list(tmp_path.iterdir())) == 2
