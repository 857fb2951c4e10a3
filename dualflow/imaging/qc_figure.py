"""Quality-control figure of a scan, small enough for hundreds of them on one page.

A row per image: three planes through the brain's centre, and a histogram of the values inside the brain mask. The
outline of the mask is drawn on the source. The edges of the source are drawn on every other image, before and after
alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, gaussian_gradient_magnitude, gaussian_laplace

from dualflow.commit import committing
from dualflow.imaging.geometry import BoolArray, FloatArray

# Share of the brain's voxels that count as edges.
EDGE_SHARE = 0.2
# Quantile of the brain's values at the top of the window, and margin below white, so that lines remain visible.
BRIGHTEST, HEADROOM = 0.998, 1.25
# Pixels: the three planes side by side, the histogram beside them, the label above, the gap between.
PLANES, HISTOGRAM, LABEL, GAP = 430, 140, 20, 6
# No chroma subsampling, which would smear the thin coloured lines.
JPEG = {"quality": 50, "subsampling": 0, "optimize": True, "progressive": True}
OUTLINE, EDGES, INK = "#ff5a36", "#5fe0ff", "#c8ced6"
COLOURS = {"pet": "inferno", "perf": "inferno"}
"""Colour map of images of a BIDS datatype, where it is not gray."""
_DPI = 100
_BINS = 48


@dataclass(frozen=True)
class Image:
    """One image of a scan, on a RAS-aligned isotropic grid.

    Attributes:
        name: its name in the figure.
        values: `[D, H, W]`, aligned with the source.
        before: the same image before its alignment; None if it was already aligned.
        colours: matplotlib colour map.
    """

    name: str
    values: FloatArray
    before: FloatArray | None = None
    colours: str = "gray"

    @property
    def rows(self) -> list[tuple[str, FloatArray]]:
        """Label and values of its rows in the figure."""
        if self.before is None:
            return [(f"{self.name} without alignment", self.values)]
        return [(f"{self.name} before alignment", self.before), (f"{self.name} after alignment", self.values)]


def save_figure(path: Path, source: Image, images: Sequence[Image], mask: BoolArray) -> None:
    """Save a JPEG of `source` with the outline of `mask`, and of each image with the source's edges.

    Args:
        path: JPEG file.
        source: the image that the mask was computed on.
        images: further images on the same grid, such as the target; may be empty.
        mask: brain on that grid.
    """
    outline, edges = _Lines(mask.astype(np.float32), 0.5, OUTLINE), _Lines(_edges(source.values, mask), 0.0, EDGES)
    rows = [(f"{source.name} with brain mask", source.values, source, outline)]
    rows += [(label, values, image, edges) for image in images for label, values in image.rows]
    centre = [int(np.median(index)) for index in np.nonzero(mask)]
    canvas = _Canvas(mask.shape, len(rows))
    for row, (label, values, image, lines) in enumerate(rows):
        # The same window before and after alignment; otherwise an image that misses the brain would be white.
        low, high = _window(image.values[mask])
        canvas.label(row, label)
        for axis, index in enumerate(centre):
            axes = canvas.plane(row, axis)
            plane, white = _slice(values, axis, index), low + HEADROOM * (high - low)
            axes.imshow(plane, origin="lower", cmap=image.colours, vmin=low, vmax=white)
            lines.draw(axes, axis, index)
        _histogram(canvas.histogram(row), values[mask], (low, high))
    with committing(path) as temp:
        canvas.figure.savefig(temp, format="jpeg", pil_kwargs=JPEG)


class _Lines(NamedTuple):
    """Contour lines of a volume at a level."""

    volume: FloatArray
    level: float
    colour: str

    def draw(self, axes: Axes, axis: int, index: int) -> None:
        """Draw the lines of one plane, if it has any."""
        plane = _slice(self.volume, axis, index)
        if np.nanmin(plane, initial=np.inf) < self.level < np.nanmax(plane, initial=-np.inf):
            axes.contour(plane, levels=[self.level], colors=self.colour, linewidths=0.6)


class _Canvas:
    """Axes at exact pixels, because a layout engine would draw the figure twice."""

    def __init__(self, shape: tuple[int, ...], rows: int) -> None:
        x, y, z = shape
        self.scale = PLANES / (y + 2 * x)
        self.sizes = [(width * self.scale, height * self.scale) for width, height in ((y, z), (x, z), (x, y))]
        self.height = max(height for _, height in self.sizes) + LABEL + GAP
        self.width, self.total = PLANES + HISTOGRAM + 4 * GAP, rows * self.height
        self.figure = Figure(figsize=(self.width / _DPI, self.total / _DPI), dpi=_DPI, facecolor="black")
        FigureCanvasAgg(self.figure)

    def label(self, row: int, text: str) -> None:
        """Write the label above a row."""
        y = 1 - (row * self.height + LABEL / 2) / self.total
        self.figure.text(GAP / self.width, y, text, color="white", fontsize=9.5, va="center")

    def plane(self, row: int, axis: int) -> Axes:
        """Axes of the plane across `axis`, in the middle of its row."""
        width, height = self.sizes[axis]
        left = sum(size[0] for size in self.sizes[:axis]) + (axis + 1) * GAP / 2
        axes = self._axes(left, row, (self.height - LABEL - GAP - height) / 2, width, height)
        axes.set_axis_off()
        return axes

    def histogram(self, row: int) -> Axes:
        """Axes to the right of the planes, with space for numbers below."""
        height = self.height - LABEL - GAP
        return self._axes(PLANES + 3 * GAP, row, 0.2 * height, HISTOGRAM - GAP, 0.6 * height)

    def _axes(self, left: float, row: int, top: float, width: float, height: float) -> Axes:
        bottom = self.total - row * self.height - LABEL - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.total, width / self.width, height / self.total), facecolor="black"
        )


def _edges(source: FloatArray, mask: BoolArray) -> FloatArray:
    """An image that crosses zero on the source's edges, NaN elsewhere."""
    strength = gaussian_gradient_magnitude(source, 1.0)
    # Dilated, so that contour lines do not break at weak voxels.
    strong = binary_dilation(strength > np.quantile(strength[mask], 1 - EDGE_SHARE))
    return np.where(strong, gaussian_laplace(source, 1.0), np.nan)


def _window(inside: FloatArray) -> tuple[float, float]:
    """Displayed range: from 0, or the lowest values where negative, to the brightest."""
    low, high = (float(end) for end in np.quantile(inside, [1 - BRIGHTEST, BRIGHTEST]))
    low = min(low, 0.0)
    return low, high if high > low else low + 1


def _histogram(axes: Axes, inside: FloatArray, window: tuple[float, float]) -> None:
    axes.stairs(*np.histogram(inside, bins=_BINS, range=window), fill=True, color=INK)
    axes.spines[:].set_visible(False)
    axes.set(xlim=window, yticks=[])
    axes.set_xticks(window, [f"{float(f'{end:.3g}'):g}" for end in window])
    axes.tick_params(colors=INK, labelsize=8.5, length=2)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _slice(volume: FloatArray, axis: int, index: int) -> FloatArray:
    """One plane as rows and columns: superior or anterior up, right to the right."""
    return np.asarray(np.take(volume, index, axis=axis).T)
