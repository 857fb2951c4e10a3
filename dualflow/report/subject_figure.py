"""Figure of one subject: source, real target, synthetic images, error and uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from dualflow.arrays import Bools, Floats
from dualflow.imaging.figure_canvas import SOURCE_MAP, SPREAD_MAP, TARGET_MAP, round_up
from dualflow.imaging.intensity import difference
from dualflow.imaging.result_figure import ERROR_MAP
from dualflow.modalities import Modality
from dualflow.report.style import MUTED, styled

PLANES = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}


class Column(NamedTuple):
    """One column of the figure."""

    name: str
    volume: Floats | None
    colours: str
    window: tuple[float, float]
    unit: str


class Limits(NamedTuple):
    """Ends of the colour scales that several figures share, in the target's unit."""

    error: float
    spread: float


def limits(errors: Sequence[Floats], spreads: Sequence[Floats]) -> Limits:
    """Limits that hold 99 % of the voxels of every person, rounded up.

    Args:
        errors: signed errors `[N]` inside the mask, an array per person; may be empty.
        spreads: standard deviations `[N]` inside the mask, an array per person.
    """
    error, spread = (
        round_up(max((float(np.percentile(np.abs(part), 99)) for part in parts), default=1.0))
        for parts in (errors, spreads)
    )
    return Limits(error, spread)


@styled
def subject_figure(
    source: Floats,
    mean: Floats,
    std: Floats,
    mask: Bools,
    row: Modality,
    *,
    source_row: Modality,
    target: Floats | None = None,
    sample: Floats | None = None,
    title: str = "",
    scale: Limits | None = None,
    narrow: bool = False,
) -> Figure:
    """Draw source, real target, synthetic mean, one sample, error and uncertainty in three planes.

    Volumes `[D, H, W]` lie on a RAS-aligned grid and are shown in neurological orientation (left is left). All target
    images share the modality's window. Images without data are omitted. An image is a column, or a row if `narrow`.
    `scale` is shared by several figures; None takes it from this person.
    """
    error = None if target is None else difference(mean, target, mask)
    scale = scale or limits([] if error is None else [error[mask]], [std[mask]])
    source_name = f"{source_row.suffix} MR" if source_row.datatype == "anat" else source_row.suffix
    images = [
        Column(source_name, source, SOURCE_MAP, source_row.window, source_row.unit),
        Column("Real", target, TARGET_MAP, row.window, row.unit),
        Column("Synthetic mean", mean, TARGET_MAP, row.window, row.unit),
        Column("One sample", sample, TARGET_MAP, row.window, row.unit),
        Column("Mean - real", error, ERROR_MAP, (-scale.error, scale.error), row.unit),
        Column("Uncertainty (SD)", std, SPREAD_MAP, (0.0, scale.spread), row.unit),
    ]
    return plane_grid([image for image in images if image.volume is not None], mask, title=title, narrow=narrow)


@styled
def plane_grid(images: Sequence[Column], mask: Bools, *, title: str = "", narrow: bool = False) -> Figure:
    """Draw the axial, coronal and sagittal plane of each image inside `mask`, with a colour bar per image.

    An image is a column of the figure, or a row if `narrow`.
    """
    centre, box = _centre(mask), _box(mask)
    x, y, z = (part.stop - part.start for part in box)
    count = len(images)
    if narrow:
        figure = Figure(figsize=(3.8, 1.25 * count + 0.3), layout="constrained")
        grid = figure.subplots(count, 3, gridspec_kw={"width_ratios": [x, x, y]}, squeeze=False)
    else:
        figure = Figure(figsize=(1.62 * count + 0.35, 5.1), layout="constrained")
        grid = figure.subplots(3, count, gridspec_kw={"height_ratios": [y, z, z]}, squeeze=False).T
    for number, (axes_of_image, image) in enumerate(zip(grid, images, strict=True)):
        assert image.volume is not None
        volume = np.where(mask, image.volume, np.nan)
        bad = "white" if image.colours == ERROR_MAP else "#101418"
        colours = mpl.colormaps[image.colours].with_extremes(bad=bad)
        for line, (axes, (plane, ends)) in enumerate(zip(axes_of_image, PLANES.items(), strict=True)):
            picture = axes.imshow(
                _slice(volume, line, centre, box), cmap=colours, vmin=image.window[0], vmax=image.window[1],
                origin="lower", interpolation="nearest",
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if number == 0:
                _label_plane(axes, plane, ends, narrow=narrow)
        axes_of_image[0].set_title(image.name)
        location = "right" if narrow else "bottom"
        bar = figure.colorbar(picture, ax=list(axes_of_image), location=location, aspect=14, pad=0.015, shrink=0.9)
        _finish_bar(bar, image, narrow=narrow)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=MUTED)
    return figure


def _label_plane(axes: Axes, plane: str, ends: tuple[str, str], *, narrow: bool) -> None:
    """Name a plane and the sides of the head at its ends."""
    if not narrow:
        axes.set_ylabel(plane, color=MUTED)
    for x, label, side in ((0.03, ends[0], "left"), (0.97, ends[1], "right")):
        axes.text(x, 0.97, label, transform=axes.transAxes, ha=side, va="top", color="white", fontweight="bold")


def _finish_bar(bar: Colorbar, image: Column, *, narrow: bool) -> None:
    bar.outline.set_visible(False)
    bar.set_ticks(list(image.window), labels=[f"{end:g}" for end in image.window])
    bar.ax.tick_params(labelsize=7, length=2)
    if not narrow:
        lowest, highest = bar.ax.get_xticklabels()
        lowest.set_horizontalalignment("left")
        highest.set_horizontalalignment("right")
    bar.set_label(image.unit, fontsize=7.5, color=MUTED)


def _slice(volume: Floats, line: int, centre: tuple[int, int, int], box: tuple[slice, slice, slice]) -> Floats:
    """One plane with rows from bottom to top and columns from left to right."""
    axis = (2, 1, 0)[line]
    plane = np.take(volume, centre[axis], axis=axis)
    first, second = (box[index] for index in range(3) if index != axis)
    return np.asarray(plane[first, second].T)


def _centre(mask: Bools) -> tuple[int, int, int]:
    """Centre of the mask, with the sagittal plane off the midline, where it shows tissue."""
    middle = [round(float(indices.mean())) for indices in np.nonzero(mask)]
    width = int(np.ptp(np.nonzero(mask)[0]))
    return middle[0] - width // 10, middle[1], middle[2]


def _box(mask: Bools) -> tuple[slice, slice, slice]:
    bounds = [
        (max(int(p.min()) - 1, 0), min(int(p.max()) + 2, size))
        for p, size in zip(np.nonzero(mask), mask.shape, strict=True)
    ]
    first, second, third = (slice(*bound) for bound in bounds)
    return first, second, third
