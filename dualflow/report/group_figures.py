"""Figures of a group analysis: forest plots of its effects, and the effects on the brain."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dualflow.commit import committing
from dualflow.evaluation.statistics import SIGNIFICANT
from dualflow.imaging.geometry import Affine
from dualflow.imaging.regions import RegionMap
from dualflow.imputation.group_models import COMPLETE, MULTIPLE, SINGLE
from dualflow.report.style import COLOURS, GRID, INK, MUTED, styled

SHOWN = 20
"""Regions of a forest plot: those with the smallest p-values."""
_SHOWN_METHODS = (MULTIPLE, COMPLETE, SINGLE)
_OFFSETS = (-0.26, 0.0, 0.26)


@styled
def forest(table: pd.DataFrame, atlas: Collection[str], unit: str) -> Figure:
    """One panel per term: estimate and 95 % interval of each outcome and method.

    All outcomes of several regions are shown, then the regions with the smallest p-values of the first term, sorted by
    the estimate.

    Args:
        table: of `analyse_regions`.
        atlas: names of the regions.
        unit: of the outcome.
    """
    terms = list(dict.fromkeys(table["term"]))
    regions = _shown(table, terms[0], [name for name in dict.fromkeys(table["region"]) if name not in atlas])
    figure = Figure(figsize=(1.8 + 3.1 * len(terms), 1.2 + 0.33 * len(regions)), layout="constrained")
    panels = figure.subplots(1, len(terms), sharey=True, squeeze=False)[0]
    for axes, term in zip(panels, terms, strict=True):
        axes.axvline(0, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
        for method, colour, offset in zip(_SHOWN_METHODS, COLOURS, _OFFSETS, strict=False):
            rows = table[(table["term"] == term) & (table["method"] == method)].set_index("region")
            if rows.empty:
                continue
            rows = rows.reindex(regions)
            heights = np.arange(len(regions)) + offset
            axes.hlines(heights, rows["low"], rows["high"], color=colour, lw=1.6, alpha=0.55)
            axes.plot(rows["estimate"], heights, "o", color=colour, ms=3.6, label=method)
        axes.set_title(term)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"effect ({unit})", fontsize=7.5, color=MUTED)
        axes.grid(axis="x", color=GRID, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(regions)), regions, color=INK)
    panels[0].set_ylim(len(regions) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8)
    return figure


def _shown(table: pd.DataFrame, term: str, always: Sequence[str]) -> list[str]:
    """The rows of a forest plot from top to bottom."""
    rows = table[(table["term"] == term) & (table["method"] == MULTIPLE)].set_index("region")
    others = rows.drop(index=[name for name in always if name in rows.index])
    chosen = others.nsmallest(SHOWN, "p").sort_values("estimate").index
    return [*(name for name in always if name in rows.index), *map(str, chosen)]


def write_brain_map(path: Path, table: pd.DataFrame, term: str, regions: RegionMap, affine: Affine, unit: str) -> None:
    """Write a picture of a term's effects in the regions whose false discovery rate is below SIGNIFICANT.

    Args:
        path: PNG to write.
        table: of `analyse_regions`.
        term: the coefficient.
        regions: the atlas on a grid in template space.
        affine: of that grid.
        unit: of the outcome.
    """
    from nilearn import plotting  # seconds to import

    rows = table[(table["term"] == term) & (table["method"] == MULTIPLE)].set_index("region")
    effects = rows["estimate"].where(rows["q_fdr"] < SIGNIFICANT).reindex(list(regions.names)).fillna(0.0)
    image = nib.Nifti1Image(np.concatenate([[0.0], effects])[regions.labels].astype(np.float32), affine)
    count, largest = int((effects != 0).sum()), float(effects.abs().max())
    with committing(path) as temp, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "empty mask")  # no region, which the title says
        display = plotting.plot_stat_map(
            image,
            display_mode="z",
            cut_coords=(-24, -6, 10, 26, 42, 56),
            title=f"{term}, {unit}: {count} of {len(effects)} regions, false discovery rate below {SIGNIFICANT:.0%}",
            vmax=largest or 1.0,
            threshold=1e-9,
            colorbar=True,
        )
        display.savefig(str(temp), dpi=120)
        display.close()
