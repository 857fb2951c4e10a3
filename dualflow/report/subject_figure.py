"""Figure of one subject: source, real target, synthetic images, error and uncertainty."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from dualflow.evaluation.prediction import Bools, Floats
from dualflow.imaging.figure_canvas import SOURCE_MAP, SPREAD_MAP, TARGET_MAP, round_up
from dualflow.modalities import Modality
from dualflow.report.style import MUTED, styled

ERROR_MAP = "RdBu_r"
PLANES = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}


class Column(NamedTuple):
    """One column of the figure."""

    name: str
    volume: Floats | None
    colours: str
    window: tuple[float, float]
    unit: str


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
) -> Figure:
    """Draw source, real target, synthetic mean, one sample, error and uncertainty in three planes.

    Volumes `[D, H, W]` lie on a RAS-aligned grid and are shown in neurological orientation (left is left). All target
    images share the modality's window. Columns without data are omitted.
    """
    error = None if target is None else np.where(mask, mean - target, 0.0)
    error_limit = round_up(float(np.percentile(np.abs(error[mask]), 99))) if error is not None else 1.0
    spread_limit = round_up(float(np.percentile(std[mask], 99)))
    source_name = f"{source_row.suffix} MR" if source_row.datatype == "anat" else source_row.suffix
    columns = [
        Column(source_name, source, SOURCE_MAP, source_row.window, source_row.unit),
        Column("Real", target, TARGET_MAP, row.window, row.unit),
        Column("Synthetic mean", mean, TARGET_MAP, row.window, row.unit),
        Column("One sample", sample, TARGET_MAP, row.window, row.unit),
        Column("Mean - real", error, ERROR_MAP, (-error_limit, error_limit), row.unit),
        Column("Uncertainty (SD)", std, SPREAD_MAP, (0.0, spread_limit), row.unit),
    ]
    shown = [column for column in columns if column.volume is not None]
    centre, box = _centre(mask), _box(mask)
    heights = [box[1].stop - box[1].start, box[2].stop - box[2].start, box[2].stop - box[2].start]
    figure = Figure(figsize=(1.62 * len(shown) + 0.35, 5.1), layout="constrained")
    grid = figure.subplots(3, len(shown), gridspec_kw={"height_ratios": heights}, squeeze=False)
    for column, (name, image, colours, window, unit) in enumerate(shown):
        assert image is not None
        volume = np.where(mask, image, np.nan)
        palette = mpl.colormaps[colours].with_extremes(bad="white" if colours == ERROR_MAP else "#101418")
        for line, (plane, ends) in enumerate(PLANES.items()):
            axes = grid[line, column]
            picture = axes.imshow(
                _slice(volume, line, centre, box), cmap=palette, vmin=window[0], vmax=window[1], origin="lower",
                interpolation="nearest",
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0:
                axes.set_ylabel(plane, color=MUTED)
                for x, label, side in ((0.03, ends[0], "left"), (0.97, ends[1], "right")):
                    axes.text(
                        x, 0.97, label, transform=axes.transAxes, ha=side, va="top", color="white", fontweight="bold"
                    )
        grid[0, column].set_title(name)
        bar = figure.colorbar(picture, ax=grid[:, column], location="bottom", aspect=14, pad=0.015, shrink=0.9)
        bar.outline.set_visible(False)
        bar.set_ticks(list(window), labels=[f"{end:g}" for end in window])
        bar.ax.tick_params(labelsize=7, length=2)
        lowest, highest = bar.ax.get_xticklabels()
        lowest.set_horizontalalignment("left")
        highest.set_horizontalalignment("right")
        bar.set_label(unit, fontsize=7.5, color=MUTED)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=MUTED)
    return figure


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
