"""Figures of the report; each function returns a matplotlib Figure and touches no global state."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dualflow.commit import committing
from dualflow.evaluation.metrics import METRICS, correlation
from dualflow.evaluation.prediction import Bools, Floats
from dualflow.modalities import Modality

DPI = 150
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e7eb"
COLOURS = ("#1f5fa8", "#d1662b", "#3c8d53", "#8a4fa3", "#b8860b", "#5b6770", "#c2406e", "#2a9d9d")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
SOURCE_MAP, TARGET_MAP, ERROR_MAP, SPREAD_MAP = "gray", "magma", "RdBu_r", "viridis"


class Column(NamedTuple):
    """One column of a subject's panel."""

    name: str
    volume: Floats | None
    colours: str
    window: tuple[float, float]
    unit: str


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under STYLE without changing matplotlib's settings for anyone else."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def to_png(figure: Figure) -> bytes:
    """Render to PNG bytes that depend on nothing but the figure."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write `figure` as PNG to `path` atomically."""
    with committing(path) as temp:
        temp.write_bytes(to_png(figure))


@styled
def subject_panel(
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
    """One subject in three planes: source, real target, synthetic mean, one sample, error, uncertainty.

    Volumes `[D, H, W]` lie on a RAS-aligned grid and are shown in neurological orientation (the subject's left is on
    the left). Every column of target images has the modality's one window. Columns without data are left out.
    """
    error = None if target is None else np.where(mask, mean - target, 0.0)
    limit = _nice(float(np.percentile(np.abs(error[mask]), 99))) if error is not None else 1.0
    reach = _nice(float(np.percentile(std[mask], 99)))
    source_name = f"{source_row.suffix} MR" if source_row.datatype == "anat" else source_row.suffix
    columns = [
        Column(source_name, source, SOURCE_MAP, source_row.window, source_row.unit),
        Column("Real", target, TARGET_MAP, row.window, row.unit),
        Column("Synthetic mean", mean, TARGET_MAP, row.window, row.unit),
        Column("One sample", sample, TARGET_MAP, row.window, row.unit),
        Column("Mean - real", error, ERROR_MAP, (-limit, limit), row.unit),
        Column("Uncertainty (SD)", std, SPREAD_MAP, (0.0, reach), row.unit),
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
        bar.set_ticks([window[0], (window[0] + window[1]) / 2, window[1]])
        bar.ax.tick_params(labelsize=7, length=2)
        bar.set_label(unit, fontsize=7.5, color=MUTED)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=MUTED)
    return figure


@styled
def metric_comparison(summary: pd.DataFrame, metrics: Sequence[str], row: Modality, *, columns: int = 3) -> Figure:
    """Each metric in its own frame: a dot per model with its 95 % interval, models from top to bottom."""
    present = [metric for metric in metrics if metric in set(summary["metric"])]
    models = list(dict.fromkeys(summary["model"]))
    columns = max(1, min(columns, len(present)))
    lines = max(1, -(-len(present) // columns))
    size = (8.6, lines * (0.75 + 0.27 * len(models)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, metric in zip(grid.flat, present, strict=False):
        chosen = summary[summary["metric"] == metric].set_index("model")
        for place, model in enumerate(models):
            if model in chosen.index:
                value, low, high = (float(chosen.loc[model, name]) for name in ("mean", "low", "high"))
                colour = COLOURS[place % len(COLOURS)]
                axes.plot([low, high], [place, place], color=colour, lw=2, alpha=0.45, solid_capstyle="round")
                axes.plot(value, place, "o", color=colour, ms=5.5)
        rule = METRICS[metric]
        if rule.better == "ideal":
            axes.axvline(rule.ideal, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(models)), models, color=INK)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", color=GRID, lw=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
        axes.set_title(rule.heading(row))
        axes.set_xlabel(HINTS[rule.better], fontsize=7.5, color=MUTED)
    for axes in grid.flat[len(present) :]:
        axes.set_visible(False)
    return figure


@styled
def reliability_curve(curves: pd.DataFrame) -> Figure:
    """Coverage against promised level per voxel and per region, a line per model; on the diagonal promises are kept.

    Args:
        curves: columns model, kind, level, coverage, of any number of subjects, which are averaged.
    """
    figure = Figure(figsize=(7.2, 3.5), layout="constrained")
    models = list(dict.fromkeys(curves["model"]))
    for axes, (kind, name) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.text(0.07, 0.93, "too wide", color=MUTED, fontsize=7.5, va="top")
        axes.text(0.95, 0.06, "too narrow", color=MUTED, fontsize=7.5, ha="right")
        for place, model in enumerate(models):
            chosen = curves[(curves["model"] == model) & (curves["kind"] == kind)]
            line = chosen.groupby("level")["coverage"].mean()
            if len(line):
                colour = COLOURS[place % len(COLOURS)]
                axes.plot(line.index, line.to_numpy(), color=colour, lw=1.6, marker="o", ms=2.6, label=model)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="promised", title=name)
        axes.grid(color=GRID, lw=0.6)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(0.0, 0.86))
    figure.axes[0].set_ylabel("held")
    return figure


@styled
def training_curves(histories: Mapping[str, pd.DataFrame], columns: Mapping[str, str]) -> Figure:
    """Curves over the steps of training, a frame per column and a line per model.

    Args:
        histories: table of each model, with a column `step`.
        columns: column -> axis label; a model without the column has no line there.
    """
    present = {name: label for name, label in columns.items() if any(name in history for history in histories.values())}
    figure = Figure(figsize=(min(8.6, 3.1 * max(1, len(present)) + 0.6), 2.7), layout="constrained")
    grid = figure.subplots(1, max(1, len(present)), squeeze=False)
    for axes, (name, label) in zip(grid.flat, present.items(), strict=False):
        for place, (model, history) in enumerate(histories.items()):
            if name in history:
                line = history[["step", name]].dropna()
                marker = "o" if len(line) < 40 else None
                axes.plot(line["step"], line[name], color=COLOURS[place % len(COLOURS)], lw=1.3, marker=marker, ms=2.5,
                          label=model)  # fmt: skip
        axes.set(xlabel="step", title=label)
        axes.grid(color=GRID, lw=0.6)
    grid.flat[0].legend(fontsize=7.5)
    return figure


@styled
def region_scatter(real: Floats, synthetic: Floats, row: Modality, *, model: str) -> Figure:
    """Region means of all subjects `[N, R]`, real against synthetic; and how well people are told apart.

    The left frame holds every region of every subject: much of its correlation is that regions differ. The right frame
    takes the mean over subjects out of each region, so that only differences between people are left.
    """
    figure = Figure(figsize=(7.2, 3.5), layout="constrained")
    centred = (real - np.nanmean(real, axis=0), synthetic - np.nanmean(synthetic, axis=0))
    frames = (("All region means", (real, synthetic)), ("Differences between people", centred))
    for axes, (name, (x, y)) in zip(figure.subplots(1, 2), frames, strict=True):
        low, high = (bound(np.concatenate([x.ravel(), y.ravel()])) for bound in (np.nanmin, np.nanmax))
        margin = 0.05 * (high - low)
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.scatter(x.ravel(), y.ravel(), s=5, color=COLOURS[0], alpha=0.35, lw=0)
        r = correlation(x.ravel(), y.ravel())
        axes.text(0.05, 0.95, f"r = {r:.2f}", transform=axes.transAxes, va="top")
        axes.set(xlim=ends, ylim=ends, aspect="equal", title=name, xlabel=f"real ({row.unit})")
        axes.set_ylabel(f"{model} ({row.unit})")
        axes.locator_params(nbins=5)
        axes.grid(color=GRID, lw=0.6)
    return figure


PLANES = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}
KINDS = {"voxel": "Voxels", "region": "Region means"}
HINTS = {"lower": "lower is better", "higher": "higher is better", "ideal": "dashed line is best"}


def _slice(volume: Floats, line: int, centre: tuple[int, int, int], box: tuple[slice, slice, slice]) -> Floats:
    """One plane as rows from bottom to top and columns from left to right of the picture."""
    axis = (2, 1, 0)[line]
    cut = [*box]
    plane = np.take(volume, centre[axis], axis=axis)
    kept = [cut[other] for other in range(3) if other != axis]
    return np.asarray(plane[kept[0], kept[1]].T)


def _centre(mask: Bools) -> tuple[int, int, int]:
    """The middle of the mask, with the sagittal plane a little off the midline, where there is tissue to see."""
    middle = [round(float(places.mean())) for places in np.nonzero(mask)]
    width = int(np.ptp(np.nonzero(mask)[0]))
    return middle[0] - width // 10, middle[1], middle[2]


def _box(mask: Bools) -> tuple[slice, slice, slice]:
    bounds = [
        (max(int(p.min()) - 1, 0), min(int(p.max()) + 2, size))
        for p, size in zip(np.nonzero(mask), mask.shape, strict=True)
    ]
    first, second, third = (slice(*bound) for bound in bounds)
    return first, second, third


def _nice(value: float) -> float:
    """Round a limit up to one leading digit, so that colour bars read well."""
    if not value > 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(value))
    return float(np.ceil(value / step - 1e-9) * step)
