"""Figures of region means: agreement, the regions with the largest errors, and effects of side information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualflow.arrays import Floats
from dualflow.data.tsv import all_numbers, numbers
from dualflow.evaluation.agreement import agreement
from dualflow.modalities import Modality
from dualflow.report.region_means import RegionMeans, readable
from dualflow.report.style import COLOURS, GRID, INK, MUTED, styled

WORST = 12
"""Number of regions that the figure of errors names."""
NAMED = 3
"""Number of regions that the agreement plot marks."""
MIN_LINE = 3
"""Smallest number of people through whom a line is drawn."""
REAL, SYNTHETIC = COLOURS[0], COLOURS[1]


@styled
def agreement_plot(means: RegionMeans, row: Modality, *, narrow: bool = False) -> Figure:
    """Bland-Altman plot: synthetic minus real region mean against their average, with bias and limits of agreement."""
    figure = Figure(figsize=(3.8 if narrow else 4.8, 3.6), layout="constrained")
    axes = figure.subplots()
    average, difference = (means.real + means.synthetic) / 2, means.synthetic - means.real
    limits = agreement(means.real, means.synthetic)
    worst = means.worst(NAMED)
    others = [index for index in range(len(means.regions)) if index not in worst]
    axes.scatter(average[:, others].ravel(), difference[:, others].ravel(), s=6, color=MUTED, alpha=0.4, lw=0)
    for colour, index in zip(COLOURS[1:], worst, strict=False):
        label = readable(means.regions[index])
        axes.scatter(average[:, index], difference[:, index], s=16, color=colour, lw=0, label=label)
    for value, name, dashes in (
        (limits.high, "+1.96 SD", (0, (4, 3))),
        (limits.bias, "bias", "solid"),
        (limits.low, "-1.96 SD", (0, (4, 3))),
    ):
        axes.axhline(value, color=INK, lw=0.9, ls=dashes)
        axes.annotate(
            f"{name} {value:+z.3f}", (1.0, value), xycoords=("axes fraction", "data"), xytext=(-2, 2),
            textcoords="offset points", ha="right", fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
    axes.axhline(0, color=MUTED, lw=0.6, zorder=0)
    axes.set(xlabel=f"average of real and synthetic ({row.unit})", ylabel=f"synthetic - real ({row.unit})")
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", ncols=1, fontsize=7.5)
    return figure


@styled
def region_errors(means: RegionMeans, *, narrow: bool = False) -> Figure:
    """Signed errors in % of the regions with the largest mean absolute error, and of all others together."""
    worst, errors = means.worst(WORST), means.errors()
    rest = [index for index in range(len(means.regions)) if index not in worst]
    rows = [(readable(means.regions[index]), errors[:, index]) for index in worst]
    if rest:
        rows.append((f"{len(rest)} other regions", errors[:, rest].ravel()))
    figure = Figure(figsize=(3.8 if narrow else 4.8, 0.6 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, (_, values) in enumerate(rows):
        colour = MUTED if height == len(worst) else COLOURS[0]
        axes.plot(values, np.full(len(values), height), "o", color=colour, ms=3, alpha=0.35, mew=0)
        axes.plot(np.nanmean(values), height, "|", color=INK, ms=11, mew=2)
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("synthetic - real, % of the real mean")
    return figure


@styled
def side_effects(
    groups: Mapping[str, tuple[Floats, Floats]], side: pd.DataFrame, row: Modality, *, columns: int = 5
) -> Figure:
    """Real and synthetic regional uptake against side information, a panel per side column and meta-region.

    Args:
        groups: real and synthetic mean `[N]` by meta-region.
        side: side columns of the N people; numbers get a least-squares line, categories their mean.
        row: the target.
        columns: largest number of panels side by side.
    """
    panels = [(name, group) for name in side.columns for group in groups]
    # Every side column starts a new line of panels, and its lines are about equally long.
    lines = -(-len(groups) // columns)
    columns = -(-len(groups) // lines)
    width, height = (10.0, 2.0) if columns > 2 else (3.8, 1.8)
    figure = Figure(figsize=(width, height * lines * len(side.columns) + 0.4), layout="constrained")
    grid = figure.subplots(lines * len(side.columns), columns, squeeze=False).reshape(len(side.columns), -1)
    for axes in grid.flat:
        axes.set_visible(False)
    for index, (name, group) in enumerate(panels):
        axes = grid[index // len(groups), index % len(groups)]
        axes.set_visible(True)
        draw = _trend if all_numbers(side[name]) else _levels
        for values, colour, label, shift in zip(
            groups[group], (REAL, SYNTHETIC), ("real", "synthetic"), (-0.15, 0.15), strict=True
        ):
            draw(axes, side[name], values, colour, label, shift)
        axes.set_title(group)
        axes.set_xlabel(str(name))
        axes.margins(0.12)
        axes.grid(color=GRID, lw=0.6)
        axes.set_axisbelow(True)
        if index % len(groups) % columns == 0:
            axes.set_ylabel(row.unit)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8)
    return figure


def _trend(axes: Axes, column: pd.Series, values: Floats, colour: str, label: str, shift: float) -> None:
    """Scans as dots against a number, with the least-squares line."""
    x = numbers(column).to_numpy()
    known = np.isfinite(x) & np.isfinite(values)
    axes.plot(x[known], values[known], "o", color=colour, ms=3.5, alpha=0.6, mew=0, label=label)
    if known.sum() >= MIN_LINE and np.ptp(x[known]) > 0:
        ends = np.array([x[known].min(), x[known].max()])
        axes.plot(ends, np.polynomial.Polynomial.fit(x[known], values[known], 1)(ends), color=colour, lw=1.4)


def _levels(axes: Axes, column: pd.Series, values: Floats, colour: str, label: str, shift: float) -> None:
    """Scans as dots by category, with the mean of each category."""
    levels = _known_levels(column)
    for position, level in enumerate(levels):
        inside = values[(column == level).to_numpy() & np.isfinite(values)]
        axes.plot(np.full(len(inside), position + shift), inside, "o", color=colour, ms=3.5, alpha=0.45, mew=0,
                  label=label if position == 0 else None)  # fmt: skip
        if len(inside):
            axes.plot(position + shift, inside.mean(), "_", color=colour, ms=12, mew=2.2)
    axes.set_xticks(range(len(levels)), levels)
    axes.set_xlim(-0.5, max(len(levels), 1) - 0.5)


def _known_levels(column: pd.Series) -> Sequence[str]:
    return sorted({str(value) for value in column.dropna()})
