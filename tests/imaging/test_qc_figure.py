"""The QC figure of a scan: its rows, outlines, histograms and size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from dualflow.imaging import qc_figure
from dualflow.imaging.figure_canvas import ENDS, Canvas
from dualflow.imaging.qc_figure import HISTOGRAM, Image, _edges, _slice, save_figure

SHAPE = (48, 57, 51)


@pytest.fixture(scope="module")
def head():
    """A bright ball as brain inside a fainter skull, and its mask."""
    middle = (np.array(SHAPE) - 1) / 2
    distance = np.sqrt(((np.stack(np.indices(SHAPE), axis=-1) - middle) ** 2).sum(axis=-1))
    noise = np.random.default_rng(0).normal(0, 2, SHAPE)
    values = gaussian_filter(100.0 * (distance < 16) + 40.0 * ((distance > 19) & (distance < 22)), 0.7) + noise
    return Image("T1w", values.astype(np.float32)), distance < 16


def pixels(path) -> np.ndarray:
    with Pillow.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def coloured(picture: np.ndarray, red: bool) -> np.ndarray:
    """Return the pixels of lines: reddish for the mask's outline, bluish for edges."""
    difference = picture[..., 0] - picture[..., 2]
    return difference > 60 if red else difference < -60


@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_of_images(head, tmp_path, count):
    """The source has one row and every other image two, all of the same height."""
    source, mask = head
    images = [Image(f"image {index}", source.values, np.roll(source.values, 5, axis=0)) for index in range(count)]
    save_figure(tmp_path / "source.jpg", source, [], mask)
    save_figure(tmp_path / "all.jpg", source, images, mask)
    row, picture = pixels(tmp_path / "source.jpg"), pixels(tmp_path / "all.jpg")
    assert picture.shape[1] == row.shape[1]
    assert picture.shape[0] == pytest.approx((1 + 2 * count) * row.shape[0], abs=2)


def test_outline_on_the_source_and_edges_on_the_others(head, tmp_path):
    """The first row has red lines only, the others have blue lines only."""
    source, mask = head
    save_figure(tmp_path / "a.jpg", source, [Image("FLAIR", source.values, source.values)], mask)
    rows = np.array_split(pixels(tmp_path / "a.jpg"), 3)
    assert [bool(coloured(row, red=True).sum() > 100) for row in rows] == [True, False, False]
    assert [bool(coloured(row, red=False).sum() > 100) for row in rows] == [False, True, True]


def test_an_image_that_was_not_aligned_has_one_row(head, tmp_path):
    """With an assumed alignment, there is no image before alignment."""
    source, mask = head
    unaligned = Image("PET", source.values, colours="inferno")
    assert [label for label, _ in unaligned.rows] == ["PET without alignment"]
    save_figure(tmp_path / "a.jpg", source, [unaligned], mask)
    assert pixels(tmp_path / "a.jpg").shape[0] < 400


def test_a_colour_bar_with_the_unit_lies_below_the_histogram(head, tmp_path, monkeypatch):
    """The bar has the colours of the image, both ends of the histogram, and the unit."""
    source, mask = head
    figures = []
    monkeypatch.setattr(Canvas, "save", lambda canvas, path, quality: figures.append(canvas.figure))
    save_figure(tmp_path / "a.jpg", source, [Image("FDG", source.values, None, "inferno", "Bq/mL")], mask)
    figures[0].canvas.draw()
    panels = [axes for axes in figures[0].axes if axes.child_axes]
    bars = [axes.child_axes[0] for axes in panels]
    assert [bar.get_xlabel() for bar in bars] == ["scanner units", "Bq/mL"]
    assert [bar.images[0].get_cmap().name for bar in bars] == ["gray", "inferno"]
    for panel, bar in zip(panels, bars, strict=True):
        assert bar.get_xlim() == panel.get_xlim()
        assert len(bar.get_xticks()) == 2
        unit = bar.xaxis.label.get_window_extent(figures[0].canvas.get_renderer())
        assert unit.y0 > 0


def test_edges_follow_the_border_of_the_brain(head):
    """There is a zero crossing within a voxel of the mask's surface."""
    source, mask = head
    edges = _edges(source.values, mask)
    line = edges[:, SHAPE[1] // 2, SHAPE[2] // 2]
    crossings = np.flatnonzero(np.diff(np.sign(line)) * np.isfinite(line[1:]) * np.isfinite(line[:-1]))
    border = np.flatnonzero(np.diff(mask[:, SHAPE[1] // 2, SHAPE[2] // 2].astype(int)))
    assert all(np.abs(crossings - index).min() <= 1 for index in border)
    assert np.isnan(edges[0, 0, 0])


def test_the_histogram_has_the_values_inside_the_mask(head, tmp_path):
    """Values outside the mask are ignored; background inside the mask raises the left end before alignment."""
    source, mask = head
    masked = Image("T1w", np.where(mask, source.values, 0).astype(np.float32))
    for name, image in (("a", source), ("b", masked)):
        save_figure(tmp_path / f"{name}.jpg", image, [], mask)
    first, second = (pixels(tmp_path / f"{name}.jpg")[:, -HISTOGRAM:] for name in "ab")
    assert np.abs(first - second).max() < 40  # JPEG artefacts of the neighbouring planes
    misaligned = Image("PET", source.values, np.roll(source.values, 20, axis=0))
    save_figure(tmp_path / "c.jpg", source, [misaligned], mask)
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
def test_implausible_values_are_drawn(head, tmp_path, change):
    """Constant, negative and huge images give a figure without a warning."""
    source, mask = head
    values = change(source.values)
    save_figure(tmp_path / "a.jpg", source, [Image("odd", values, values)], mask)
    save_figure(tmp_path / "b.jpg", Image("odd", values), [], mask)
    assert pixels(tmp_path / "a.jpg").any()


def test_figures_are_small_and_reproducible(head, tmp_path):
    """Equal images give equal bytes below 60 kB, and no other file remains."""
    source, mask = head
    for name in ("a.jpg", "b.jpg"):
        save_figure(tmp_path / name, source, [Image("PET", source.values, source.values, "inferno")], mask)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert (tmp_path / "a.jpg").stat().st_size < 60_000
    assert len(list(tmp_path.iterdir())) == 2


def test_the_planes_of_the_source_name_the_sides_of_the_head(head, tmp_path, monkeypatch):
    """Right is to the right, as the planes are drawn."""
    source, mask = head
    labels = []
    monkeypatch.setattr(qc_figure, "mark_ends", lambda axes, axis: labels.append(ENDS[axis]))
    save_figure(tmp_path / "a.jpg", source, [Image("FLAIR", source.values, source.values)], mask)
    assert labels == [("P", "A"), ("L", "R"), ("L", "R")]
    volume = np.zeros(SHAPE)
    volume[-1] = 1.0
    assert _slice(volume, 1, 0)[:, -1].all()
    assert not _slice(volume, 1, 0)[:, 0].any()
