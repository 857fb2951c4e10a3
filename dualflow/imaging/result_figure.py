"""Figure of the result of one conversion: the source, the expected image and its uncertainty in three planes.

The planes are sampled from the volumes directly, along the axes of the world that the affine leads to. Large, oblique
and anisotropic grids thus need no resampling in three dimensions.
"""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from dualflow.arrays import Bools, Singles
from dualflow.errors import GeometryError
from dualflow.imaging.components import largest_component
from dualflow.imaging.figure_canvas import (
    EDGES,
    GAP,
    INK,
    SOURCE_MAP,
    SPREAD_MAP,
    TARGET_MAP,
    Canvas,
    brain_window,
    draw_lines,
    mark_ends,
    round_up,
)
from dualflow.imaging.geometry import Affine, Points
from dualflow.imaging.intensity import difference

# Pixels: the three planes side by side, the colour bars beside them, and one line of the title.
PLANES, PANEL, TITLE_LINE = 548, 128, 22
JPEG_QUALITY = 75
ERROR_MAP = "RdBu_r"
"""Colour map of a signed error."""
_MARGIN_MM = 12.0
_TITLE_CHARACTERS, _TITLE_LINES = 80, 2
# Extent of the brain without isolated voxels of the mask.
_EXTENT = 0.001, 0.999
# Averaged samples per pixel and axis, where voxels are smaller than pixels.
_MAX_OVERSAMPLING = 3
# Number of voxels per axis that are used for extents and quantiles.
_MAX_EDGE = 96


class _Row(NamedTuple):
    """One row of the figure; `masked` hides the values outside the brain."""

    name: str
    volume: Singles
    colours: str
    window: tuple[float, float]
    masked: bool = True


def result_figure(
    *,
    source: Singles,
    mean: Singles,
    std: Singles | None,
    affine: Affine,
    unit: str,
    window: tuple[float, float],
    title: str,
    mask: Bools | None = None,
    flagged: Bools | None = None,
    real: Singles | None = None,
    source_name: str = "MR",
    target_name: str = "PET",
) -> Canvas:
    """Draw one result, with left on the left, and front or top up.

    The planes run through the largest flagged region if there is one, otherwise through the brain.

    Args:
        source: source scan `[I, J, K]`, in any unit.
        mean: expected image on the same grid, in `unit`.
        std: its standard deviation, in `unit`; None if it is unknown, which leaves out its row.
        affine: voxel index to the RAS+ millimetres that the planes are aligned with. The scan's affine gives the axes
            of the scanner; the scan's affine followed by its map to the template gives those of the template.
        unit: unit of `mean` and `std`.
        window: displayed range of `mean`.
        title: caption, such as the scan's label and its verdict; two lines at most are shown.
        mask: brain; by default the voxels whose `mean` is not 0.
        flagged: region to outline, such as a cluster of the lesion map; None or empty for no outline.
        real: real image in `unit`, which adds rows of itself and of the difference.
        source_name: name of the source.
        target_name: name of the target.

    Raises:
        GeometryError: an array is not on the grid of `source`.
    """
    arrays = {"mean": mean, "std": std, "mask": mask, "flagged": flagged, "real": real}
    for name, array in arrays.items():
        if array is not None and array.shape != source.shape:
            raise GeometryError(f"{name} has shape {array.shape}, expected {source.shape}, the grid of source")
    brain = mean != 0 if mask is None else mask
    subset = _Subset(brain)
    region = None if flagged is None else _flagged_region(flagged)
    points = apply_affine(affine, subset.voxels())
    box = np.quantile(points, _EXTENT, axis=0) + np.array([[-_MARGIN_MM], [_MARGIN_MM]])
    centre = _off_midline(points) if region is None else _central_point(apply_affine(affine, region))
    rows = [
        _Row(source_name, source, SOURCE_MAP, _source_window(subset.values(source)), masked=False),
        *([] if real is None else [_Row(f"Real {target_name}", real, TARGET_MAP, window)]),
        _Row(f"Expected {target_name}", mean, TARGET_MAP, window),
        *([] if real is None else [_error_row(difference(mean, real, brain), subset)]),
        *([] if std is None else [_Row("Standard deviation", std, SPREAD_MAP, _spread_window(subset.values(std)))]),
    ]
    lines = textwrap.wrap(title, _TITLE_CHARACTERS, max_lines=_TITLE_LINES, placeholder=" ...")
    canvas = Canvas(box[1] - box[0], len(rows), planes=PLANES, panel=PANEL, head=TITLE_LINE * len(lines))
    for number, line in enumerate(lines):
        canvas.text(GAP, (number + 0.5) * TITLE_LINE, line, fontsize=10.5, fontweight="bold")
    for axis, size in enumerate(canvas.sizes):
        plane = _Plane(axis, centre, box, size, affine)
        inside = plane.sample(brain) > 0.5
        outline = None if region is None or flagged is None else plane.sample(flagged)
        for index, row in enumerate(rows):
            image = plane.sample(row.volume)
            axes = canvas.plane(index, axis)
            _show(axes, np.where(inside, image, np.nan) if row.masked else image, row)
            mark_ends(axes, axis)
            if outline is not None:
                draw_lines(axes, outline, 0.5, "black", 2.8)
                draw_lines(axes, outline, 0.5, EDGES, 1.6)
    for index, row in enumerate(rows):
        canvas.label(index, row.name)
        if row.masked:
            _colour_bar(canvas, index, row, unit)
    _legend(canvas, offset=float(centre[0] - np.median(points[:, 0])), outlined=region is not None)
    return canvas


class _Plane:
    """Pixels of the plane across `axis`, as positions in a volume."""

    def __init__(self, axis: int, centre: Points, box: Points, size: tuple[float, float], affine: Affine) -> None:
        to_voxel, across = np.linalg.inv(affine), [other for other in range(3) if other != axis]
        shape = np.maximum(1, np.round(size).astype(int))
        pitch = (box[1] - box[0])[across] / shape
        voxels_per_pixel = np.linalg.norm(to_voxel[:3, across] * pitch, axis=0)
        # Voxels smaller than pixels are averaged; otherwise their noise would be aliased.
        self._times = int(np.clip(np.ceil(voxels_per_pixel.max() - 0.5), 1, _MAX_OVERSAMPLING))
        first, second = (
            box[0][other] + step / self._times * (np.arange(count * self._times) + 0.5)
            for other, step, count in zip(across, pitch, shape, strict=True)
        )
        points = np.empty((len(second), len(first), 3))
        points[..., axis] = centre[axis]
        points[..., across[0]], points[..., across[1]] = np.meshgrid(first, second)
        self._positions = np.moveaxis(points @ to_voxel[:3, :3].T + to_voxel[:3, 3], -1, 0)

    def sample(self, volume: Singles | Bools) -> Singles:
        """Interpolate a volume on the plane: rows from bottom to top, columns from left to right; 0 outside it."""
        fine = map_coordinates(volume, self._positions, output=np.float32, order=1, mode="grid-constant")
        rows, columns = (size // self._times for size in fine.shape)
        averaged: Singles = fine.reshape(rows, self._times, columns, self._times).mean(axis=(1, 3))
        return averaged


class _Subset:
    """Regularly spaced voxels of the brain, because statistics of a large grid take longer than the drawing."""

    def __init__(self, brain: Bools) -> None:
        self._steps = tuple(-(-size // _MAX_EDGE) for size in brain.shape)
        sparse = self._sparse(brain)
        self._brain = sparse if sparse.any() else np.ones_like(sparse)

    def voxels(self) -> Points:
        """Voxel indices `[N, 3]`."""
        return np.asarray(np.argwhere(self._brain) * np.array(self._steps))

    def values(self, volume: Singles) -> Singles:
        """Values `[N]` of a volume, 0 where it is NaN or infinite."""
        return np.asarray(np.nan_to_num(self._sparse(volume)[self._brain], posinf=0, neginf=0))

    def _sparse(self, volume: NDArray[Any]) -> NDArray[Any]:
        return volume[tuple(slice(None, None, step) for step in self._steps)]


def _flagged_region(flagged: Bools) -> Points | None:
    """Voxel indices `[N, 3]` of the largest connected component; None without a flagged voxel."""
    if not flagged.any():
        return None
    bounds = [np.flatnonzero(flagged.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    window = flagged[tuple(slice(first, last + 1) for first, last in bounds)]
    return np.asarray(np.argwhere(largest_component(window)) + np.array(bounds)[:, 0])


def _central_point(points: Points) -> Points:
    """The point `[3]` closest to the centroid of `points` `[N, 3]`, which may itself lie outside a curved region."""
    distances = np.linalg.norm(points - points.mean(axis=0), axis=1)
    return np.asarray(points[distances.argmin()])


def _off_midline(points: Points) -> Points:
    """Centre `[3]` of a brain's `points`, with the sagittal plane left of the midline, where it shows more tissue."""
    width = np.subtract(*np.quantile(points[:, 0], _EXTENT[::-1]))
    return np.asarray(np.median(points, axis=0) - [width / 10, 0, 0])


def _source_window(inside: Singles) -> tuple[float, float]:
    window = brain_window(inside)
    return window.low, window.white


def _spread_window(inside: Singles) -> tuple[float, float]:
    return 0.0, round_up(float(np.quantile(inside, 0.99)))


def _error_row(error: Singles, subset: _Subset) -> _Row:
    """The row of an error, on a scale that is symmetrical about 0."""
    limit = round_up(float(np.quantile(np.abs(subset.values(error)), 0.99)))
    return _Row("Expected - real", error, ERROR_MAP, (-limit, limit))


def _show(axes: Axes, image: Singles, row: _Row) -> None:
    low, high = row.window
    axes.imshow(image, origin="lower", aspect="auto", cmap=row.colours, vmin=low, vmax=high)


def _colour_bar(canvas: Canvas, index: int, row: _Row, unit: str) -> None:
    """Draw the colours of a row with both ends and the middle of the window, and the unit above them."""
    axes = canvas.panel(index, width=14)
    low, high = row.window
    ramp = np.linspace(low, high, 256)[:, None]
    axes.imshow(ramp, origin="lower", aspect="auto", cmap=row.colours, extent=(0, 1, low, high))
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    ticks = [low, (low + high) / 2, high]
    axes.set_yticks(ticks, [f"{float(f'{tick:.3g}'):g}" for tick in ticks])
    axes.yaxis.tick_right()
    axes.tick_params(colors=INK, labelsize=9.5, length=2)
    axes.set_title(unit, color=INK, fontsize=9.5, loc="left", pad=6, parse_math=False)


def _legend(canvas: Canvas, *, offset: float, outlined: bool) -> None:
    """Explain labels and lines beside the source; `offset` is the sagittal plane's distance from the midline in mm."""
    side = "midline" if abs(offset) < 1 else f"{abs(offset):.0f} mm {'left' if offset < 0 else 'right'}"
    notes = [("L: left, R: right", INK), ("Sagittal plane:", INK), (side, INK)]
    if outlined:
        notes += [("Outline: region", EDGES), ("flagged for review", EDGES)]
    top = canvas.row_top(0) + (canvas.row_height - 17 * len(notes)) / 2
    for number, (text, colour) in enumerate(notes):
        canvas.text(canvas.panel_left, top + 17 * number, text, color=colour, fontsize=9)
