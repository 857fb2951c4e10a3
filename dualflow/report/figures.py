"""Figures of a whole study; each function returns a matplotlib Figure and leaves global state unchanged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualflow.arrays import Floats
from dualflow.evaluation.metrics import correlation
from dualflow.evaluation.statistics import MIN_SUBJECTS
from dualflow.evaluation.study_metrics import TRUE_LAW, measure
from dualflow.modalities import Modality
from dualflow.report.style import COLOURS, GRID, INK, MUTED, palette, styled

KINDS = {"voxel": "Voxels", "region": "Region means"}
FLAT = 1e-6
"""Largest relative change of a curve that is not drawn."""
NARROW_IN, LINE_IN = 5.0, 0.21
"""Width in inches below which a figure is one for phones, and the height of a line of a legend."""
HINTS = {"lower": "lower is better", "higher": "higher is better", "ideal": "dashed line is ideal"}


@styled
def metric_comparison(
    summary: pd.DataFrame,
    metrics: Sequence[str],
    row: Modality,
    *,
    colours: Mapping[str, str] | None = None,
    bounds: Collection[str] = (),
    columns: int = 4,
) -> Figure:
    """One panel per metric: a dot per model with its 95 % interval, models from top to bottom.

    Means of fewer than MIN_SUBJECTS subjects have no interval.

    Args:
        summary: rows of model, metric, mean, low, high and subjects.
        metrics: names of the metrics to draw.
        row: modality of the target.
        colours: colour of each model; None assigns them in order.
        bounds: limits among the models, drawn as grey rings.
        columns: number of panels side by side.
    """
    present = [metric for metric in metrics if metric in set(summary["metric"])]
    models = list(dict.fromkeys(summary["model"]))
    colours = colours or palette(models)
    columns = max(1, min(columns, len(present)))
    rows = max(1, -(-len(present) // columns))
    size = (10.0 if columns > 2 else 3.8, rows * (0.75 + 0.27 * len(models)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, metric in zip(grid.flat, present, strict=False):
        values = summary[summary["metric"] == metric].set_index("model")
        for height, model in enumerate(models):
            if model in values.index:
                value, low, high = (float(values.loc[model, name]) for name in ("mean", "low", "high"))
                colour, fill = (MUTED, "none") if model in bounds else (colours[model], colours[model])
                if values.loc[model, "subjects"] >= MIN_SUBJECTS:
                    axes.plot([low, high], [height, height], color=colour, lw=2, alpha=0.45, solid_capstyle="round")
                axes.plot(value, height, "o", color=colour, markerfacecolor=fill, ms=5.5)
        definition = measure(metric)
        if definition.better == "ideal":
            axes.axvline(definition.ideal, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(models)), models, color=INK)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", color=GRID, lw=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
        axes.set_title(definition.heading(row))
        axes.set_xlabel(HINTS[definition.better], fontsize=7.5, color=MUTED)
    for axes in grid.flat[len(present) :]:
        axes.set_visible(False)
    return figure


def model_comparison(table: pd.DataFrame, metrics: Sequence[str], row: Modality, reference: str) -> Figure:
    """`metric_comparison` of a table with a row per model, such as that of `Comparison`; `reference` stands out."""
    rows = [
        {
            "model": entry["model"],
            "metric": metric,
            "mean": entry[metric],
            "low": entry[f"{metric}_low"],
            "high": entry[f"{metric}_high"],
            "subjects": entry["people"],
        }
        for metric in metrics
        if metric in table
        for entry in table[table[metric].notna()].to_dict("records")
    ]
    colours = {model: COLOURS[0] if model == reference else MUTED for model in table["model"]}
    return metric_comparison(pd.DataFrame(rows), metrics, row, colours=colours, bounds=[TRUE_LAW], columns=3)


@styled
def reliability_curve(
    curves: pd.DataFrame, *, colours: Mapping[str, str] | None = None, narrow: bool = False
) -> Figure:
    """Coverage against nominal level, for voxels and region means, with one line per model.

    Args:
        curves: columns model, kind, level, coverage; rows of one model, kind and level are averaged.
        colours: colour of each model; None assigns them in order.
        narrow: draw the panels below each other.
    """
    figure, grid = _two_panels(narrow=narrow)
    colours = colours or palette(list(dict.fromkeys(curves["model"])))
    for axes, (kind, name) in zip(grid, KINDS.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.text(0.07, 0.93, "too wide", color=MUTED, fontsize=7.5, va="top")
        axes.text(0.95, 0.06, "too narrow", color=MUTED, fontsize=7.5, ha="right")
        for model, line in _lines(curves, kind, "level", "coverage"):
            axes.plot(line.index, line.to_numpy(), color=colours[model], lw=1.6, marker="o", ms=2.6, label=model)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal level", ylabel="coverage", title=name)
        axes.grid(color=GRID, lw=0.6)
    _legend_below(figure, grid)
    return figure


@styled
def pit_histograms(
    histograms: pd.DataFrame, *, colours: Mapping[str, str] | None = None, narrow: bool = False
) -> Figure:
    """Histograms of probability integral transforms, for voxels and region means, with one line per model.

    Args:
        histograms: columns model, kind, pit (centre of a bin), share; rows of one model, kind and bin are averaged.
        colours: colour of each model; None assigns them in order.
        narrow: draw the panels below each other.
    """
    figure, grid = _two_panels(narrow=narrow)
    colours = colours or palette(list(dict.fromkeys(histograms["model"])))
    for axes, (kind, name) in zip(grid, KINDS.items(), strict=True):
        for model, shares in _lines(histograms, kind, "pit", "share"):
            edges = np.linspace(0, 1, len(shares) + 1)
            axes.stairs(shares * len(shares), edges, baseline=None, color=colours[model], lw=1.6, label=model)
        axes.axhline(1, color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.set(xlim=(0, 1), xlabel="place of the real value in the distribution", ylabel="density", title=name)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=GRID, lw=0.6)
    _legend_below(figure, grid)
    return figure


def _legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """Name the lines of all panels once, below them: the names of many models would cover a panel."""
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        columns = 2 if figure.get_figwidth() < NARROW_IN else 4
        figure.set_figheight(figure.get_figheight() + LINE_IN * -(-len(named) // columns))
        figure.legend(named.values(), named.keys(), loc="outside lower left", ncols=columns, fontsize=7.5)


def _lines(table: pd.DataFrame, kind: str, position: str, value: str) -> Iterator[tuple[str, pd.Series]]:
    """Yield each model that has rows of a kind, with the mean value at each position."""
    for model in dict.fromkeys(table["model"]):
        selected = table[(table["model"] == model) & (table["kind"] == kind)]
        if len(selected):
            yield model, selected.groupby(position)[value].mean()


def _changes(values: pd.Series) -> bool:
    """Whether a curve has a single value or changes."""
    return len(values) == 1 or bool((values.max() - values.min()) > FLAT * values.abs().max())


@styled
def training_curves(
    histories: Mapping[str, pd.DataFrame],
    columns: Mapping[str, str],
    *,
    best: Mapping[str, int] | None = None,
    narrow: bool = False,
) -> Figure:
    """Curves over the training steps, one panel per column and one line per model.

    Args:
        histories: table of each model, with a column `step`.
        columns: column -> title; a model without the column has no line, and what does not change, such as the error
            of a fixed mean, no panel.
        best: step whose weights were kept, by model; a vertical line marks it.
        narrow: draw the panels below each other.
    """
    colours = palette(list(histories))
    present = {
        name: label
        for name, label in columns.items()
        if any(name in history and _changes(history[name].dropna()) for history in histories.values())
    }
    count = max(1, len(present))
    size = (3.8, 2.3 * count) if narrow else (min(10.0, 3.2 * count + 0.6), 2.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(*((count, 1) if narrow else (1, count)), squeeze=False)
    for axes, (name, label) in zip(grid.flat, present.items(), strict=False):
        for model, history in histories.items():
            if name in history:
                line = history[["step", name]].dropna()
                marker = "o" if len(line) < 40 else None
                axes.plot(line["step"], line[name], color=colours[model], lw=1.3, marker=marker, ms=2.5,
                          label=model)  # fmt: skip
        for model, step in (best or {}).items():
            axes.axvline(step, color=colours[model], lw=0.9, ls=(0, (4, 3)), zorder=0)
            # Beside the line, on the side with more room.
            offset, side = (3, "left") if 2 * step < histories[model]["step"].max() else (-3, "right")
            axes.annotate(
                f"best step {step}", (step, 1.0), xycoords=("data", "axes fraction"), xytext=(offset, -2), rotation=90,
                textcoords="offset points", ha=side, va="top", fontsize=7, color=MUTED,
            )  # fmt: skip
        axes.set(xlabel="step", title=label)
        axes.grid(color=GRID, lw=0.6)
    _legend_below(figure, grid.flat)
    return figure


@styled
def region_scatter(real: Floats, synthetic: Floats, row: Modality, *, model: str, narrow: bool = False) -> Figure:
    """Real against synthetic region means `[N, R]`, absolute and relative to the mean over subjects.

    The left panel shows every region of every subject; differences between regions dominate its correlation. The right
    panel subtracts the mean over subjects from each region, so only differences between subjects remain. The panels
    are below each other if `narrow`.
    """
    figure, grid = _two_panels(narrow=narrow)
    centred = (real - np.nanmean(real, axis=0), synthetic - np.nanmean(synthetic, axis=0))
    panels = (("All region means", (real, synthetic)), ("Differences between subjects", centred))
    for axes, (name, (x, y)) in zip(grid, panels, strict=True):
        low, high = (bound(np.concatenate([x.ravel(), y.ravel()])) for bound in (np.nanmin, np.nanmax))
        margin = 0.05 * (high - low)
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.scatter(x.ravel(), y.ravel(), s=5, color=COLOURS[0], alpha=0.35, lw=0)
        r = correlation(x.ravel(), y.ravel())
        axes.text(0.05, 0.95, "" if np.isnan(r) else f"r = {r:.2f}", transform=axes.transAxes, va="top")
        axes.set(xlim=ends, ylim=ends, aspect="equal", title=name, xlabel=f"real ({row.unit})")
        axes.set_ylabel(f"{model} ({row.unit})")
        axes.locator_params(nbins=5)
        axes.set_axisbelow(True)
        axes.grid(color=GRID, lw=0.6)
    return figure


def _two_panels(*, narrow: bool) -> tuple[Figure, list[Axes]]:
    """A figure with two square panels side by side, or below each other."""
    figure = Figure(figsize=(3.8, 7.0) if narrow else (7.2, 3.7), layout="constrained")
    grid = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    return figure, list(grid)
