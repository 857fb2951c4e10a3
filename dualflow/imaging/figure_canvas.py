"""Canvas of the figures that show planes of a brain: rows of three planes with a panel beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dualflow.arrays import Singles
from dualflow.commit import committing

# Pixels: the label above a row, and the gap between planes.
LABEL, GAP = 20, 6
OUTLINE, EDGES, INK = "#ff5a36", "#5fe0ff", "#c8ced6"
SOURCE_MAP, TARGET_MAP, SPREAD_MAP = "gray", "magma", "viridis"
"""Colour maps of a source, of a target or synthetic image, and of a standard deviation."""
ENDS = {0: ("P", "A"), 1: ("L", "R"), 2: ("L", "R")}
"""Labels of the left and the right end of the plane across each axis."""
# Quantile of the brain's values at the top of the window, and margin below white, so that lines remain visible.
_BRIGHTEST, _HEADROOM = 0.998, 1.25
# No chroma subsampling, which would smear the thin coloured lines.
_JPEG = {"subsampling": 0, "optimize": True, "progressive": True}
_DPI = 100


class Canvas:
    """Axes at exact pixels, because a layout engine would draw the figure twice.

    Each row has a label, the sagittal, the coronal and the axial plane at one scale, and a panel to their right.

    Attributes:
        figure: the figure.
        scale: pixels per unit of `extent`.
        sizes: width and height of the planes across each axis, in pixels.

    Args:
        extent: edges of the box that is shown, along x, y and z.
        rows: number of rows.
        planes: width of the three planes in pixels.
        panel: width of the panels in pixels.
        head: height above the first row in pixels.
    """

    def __init__(self, extent: Sequence[float], rows: int, *, planes: int, panel: int, head: int = 0) -> None:
        x, y, z = extent
        self.scale = planes / (y + 2 * x)
        self.sizes = [(width * self.scale, height * self.scale) for width, height in ((y, z), (x, z), (x, y))]
        self._planes, self._panel, self._head = planes, panel, head
        self.row_height = max(height for _, height in self.sizes) + LABEL + GAP
        self.width, self.height = planes + panel + 4 * GAP, head + rows * self.row_height
        self.figure = Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="black")
        FigureCanvasAgg(self.figure)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write `text` at a distance in pixels from the left and the top; dollar signs are not formulas."""
        style = {"color": "white", "fontsize": 9.5, "va": "center", "parse_math": False, **style}
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def label(self, row: int, text: str) -> None:
        """Write the label above a row."""
        self.text(GAP, self.row_top(row) + LABEL / 2, text)

    def row_top(self, row: int) -> float:
        """Distance of a row from the top, in pixels."""
        return self._head + row * self.row_height

    def plane(self, row: int, axis: int) -> Axes:
        """Axes of the plane across `axis`, in the middle of its row."""
        width, height = self.sizes[axis]
        left = sum(size[0] for size in self.sizes[:axis]) + (axis + 1) * GAP / 2
        axes = self._axes(left, row, (self.row_height - LABEL - GAP - height) / 2, width, height)
        axes.set_axis_off()
        return axes

    def panel(self, row: int, *, width: float | None = None) -> Axes:
        """Axes right of the planes, as wide as the panel unless given; below is space for a bar, numbers and a unit."""
        height = self.row_height - LABEL - GAP
        return self._axes(self.panel_left, row, 0.1 * height, width or self._panel - GAP, 0.58 * height)

    @property
    def panel_left(self) -> float:
        """Distance of the panels from the left, in pixels."""
        return self._planes + 3 * GAP

    def save(self, path: Path, *, quality: int) -> None:
        """Write the figure to `path` as JPEG, atomically; `quality` is 1 to 95."""
        with committing(path) as temp:
            self.figure.savefig(temp, format="jpeg", pil_kwargs=_JPEG | {"quality": quality})

    def _axes(self, left: float, row: int, top: float, width: float, height: float) -> Axes:
        bottom = self.height - self.row_top(row) - LABEL - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height), facecolor="black"
        )


class Window(NamedTuple):
    """Displayed range of a source image.

    Attributes:
        low: value shown in black.
        high: brightest value of the brain.
        white: value shown in white.
    """

    low: float
    high: float
    white: float


def brain_window(inside: Singles) -> Window:
    """Range from 0, or the lowest values where negative, to the brightest values `[N]` inside the brain."""
    low, high = (float(end) for end in np.quantile(inside, [1 - _BRIGHTEST, _BRIGHTEST]))
    low = min(low, 0.0)
    high = high if high > low else low + 1
    return Window(low, high, low + _HEADROOM * (high - low))


def round_up(value: float) -> float:
    """Round up to one significant digit, for readable colour bars; 1 if the value is not positive."""
    if not value > 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(value))
    return float(np.ceil(value / step - 1e-9) * step)


def mark_ends(axes: Axes, axis: int) -> None:
    """Write the labels of a plane's ends, outlined because they may lie on bright tissue."""
    for x, text, side in ((0.02, ENDS[axis][0], "left"), (0.98, ENDS[axis][1], "right")):
        axes.text(
            x, 0.98, text, transform=axes.transAxes, ha=side, va="top", color="white", fontsize=9.5, fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def draw_lines(axes: Axes, plane: Singles, level: float, colour: str, width: float = 0.6) -> None:
    """Draw the contour lines of a plane at a level, if it has any."""
    if np.nanmin(plane, initial=np.inf) < level < np.nanmax(plane, initial=-np.inf):
        axes.contour(plane, levels=[level], colors=colour, linewidths=width)
