"""Quality-control figure of a scan, small enough for hundreds of them on one page.

A row per image: three planes through the brain's centre, and a histogram of the values inside the brain mask above the
colour bar of the planes. The outline of the mask is drawn on the source, whose planes name the sides of the head. The
edges of the source are drawn on every other image, before and after alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.ndimage import binary_dilation, gaussian_gradient_magnitude, gaussian_laplace

from dualflow.arrays import Bools, Singles
from dualflow.imaging.figure_canvas import EDGES, INK, OUTLINE, Canvas, Window, brain_window, draw_lines, mark_ends

# Share of the brain's voxels that count as edges.
EDGE_SHARE = 0.2
# Pixels: the three planes side by side, and the histogram beside them.
PLANES, HISTOGRAM = 430, 140
JPEG_QUALITY = 50
COLOURS = {"pet": "inferno", "perf": "inferno"}
"""Colour map of images of a BIDS datatype, where it is not gray."""
_BINS = 48


@dataclass(frozen=True)
class Image:
    """One image of a scan, on a RAS-aligned isotropic grid.

    Attributes:
        name: its name in the figure.
        values: `[D, H, W]`, aligned with the source.
        before: the same image before its alignment; None if it was already aligned.
        colours: matplotlib colour map.
        unit: unit of the values.
    """

    name: str
    values: Singles
    before: Singles | None = None
    colours: str = "gray"
    unit: str = "scanner units"

    @property
    def rows(self) -> list[tuple[str, Singles]]:
        """Label and values of its rows in the figure."""
        if self.before is None:
            return [(f"{self.name} without alignment", self.values)]
        return [(f"{self.name} before alignment", self.before), (f"{self.name} after alignment", self.values)]


def save_figure(path: Path, source: Image, images: Sequence[Image], mask: Bools) -> None:
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
    canvas = Canvas(mask.shape, len(rows), planes=PLANES, panel=HISTOGRAM)
    for row, (label, values, image, lines) in enumerate(rows):
        # The same window before and after alignment; otherwise an image that misses the brain would be white.
        window = brain_window(image.values[mask])
        canvas.label(row, label)
        for axis, index in enumerate(centre):
            axes = canvas.plane(row, axis)
            plane = _slice(values, axis, index)
            axes.imshow(plane, origin="lower", cmap=image.colours, vmin=window.low, vmax=window.white)
            lines.draw(axes, axis, index)
            if row == 0:
                mark_ends(axes, axis)
        _histogram(canvas.panel(row), values[mask], window, image)
    canvas.save(path, quality=JPEG_QUALITY)


class _Lines(NamedTuple):
    """Contour lines of a volume at a level."""

    volume: Singles
    level: float
    colour: str

    def draw(self, axes: Axes, axis: int, index: int) -> None:
        """Draw the lines of one plane, if it has any."""
        draw_lines(axes, _slice(self.volume, axis, index), self.level, self.colour)


def _edges(source: Singles, mask: Bools) -> Singles:
    """An image that crosses zero on the source's edges, NaN elsewhere."""
    strength = gaussian_gradient_magnitude(source, 1.0)
    # Dilated, so that contour lines do not break at weak voxels.
    strong = binary_dilation(strength > np.quantile(strength[mask], 1 - EDGE_SHARE))
    return np.where(strong, gaussian_laplace(source, 1.0), np.nan)


def _histogram(axes: Axes, inside: Singles, window: Window, image: Image) -> None:
    """Draw a histogram above the colours of its values, with both ends and the unit."""
    ends = window.low, window.high
    axes.stairs(*np.histogram(inside, bins=_BINS, range=ends), fill=True, color=INK)
    axes.spines[:].set_visible(False)
    axes.set(xlim=ends, yticks=[])
    bar = axes.inset_axes((0, -0.16, 1, 0.1))
    ramp = np.linspace(*ends, 256)[None]
    bar.imshow(ramp, aspect="auto", cmap=image.colours, vmin=window.low, vmax=window.white, extent=(*ends, 0, 1))
    bar.set(yticks=[])
    bar.spines[:].set_visible(False)
    axes.set_xticks([])
    axes = bar
    axes.set_xticks(ends, [f"{float(f'{end:.3g}'):g}" for end in ends])
    axes.set_xlabel(image.unit, color=INK, fontsize=8.5, labelpad=0, parse_math=False)
    axes.tick_params(colors=INK, labelsize=8.5, length=2)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _slice(volume: Singles, axis: int, index: int) -> Singles:
    """One plane as rows and columns: superior or anterior up, right to the right."""
    return np.asarray(np.take(volume, index, axis=axis).T)
