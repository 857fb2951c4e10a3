"""Figure of a what-if series: the measured image, each edited one, its change, and the curves of meta-regions."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dualflow.arrays import Bools, Floats
from dualflow.imaging.figure_canvas import SOURCE_MAP, TARGET_MAP, round_up
from dualflow.imaging.intensity import scored_voxels
from dualflow.imaging.meta_regions import meta_regions
from dualflow.imaging.result_figure import ERROR_MAP
from dualflow.modalities import Modality
from dualflow.report.style import COLOURS, MUTED, styled


@styled
def edit_figure(
    source: Floats,
    measured: Floats,
    images: Sequence[Floats],
    mask: Bools,
    row: Modality,
    column: str,
    values: Sequence[str],
    regions: pd.DataFrame,
) -> Figure:
    """Draw one axial plane of each image above its change, and below them the curves of meta-regions.

    Args:
        source: `[D, H, W]`, as are all volumes, on a RAS-aligned grid.
        measured: the measured target; changes are blank in voxels that it does not show.
        images: under each value.
        mask: brain.
        row: modality of the target.
        column: edited side column.
        values: its values.
        regions: columns region, `column`, suvr, measured.
    """
    level = round(float(np.nonzero(mask)[2].mean()))
    shown = scored_voxels(measured, mask)
    changes = [np.where(shown, image - measured, np.nan) for image in images]
    limit = round_up(float(np.nanpercentile(np.abs(np.stack(changes)), 99)))
    columns = len(images) + 1
    figure = Figure(figsize=(1.7 * columns + 0.8, 6.6), layout="constrained")
    grid = figure.add_gridspec(3, columns, height_ratios=[1, 1, 1.25])
    panels = [[figure.add_subplot(grid[line, place]) for place in range(columns)] for line in (0, 1)]
    first = np.where(mask, source, np.nan)
    _show(panels[1][0], first[:, :, level], SOURCE_MAP, (0, float(np.nanpercentile(first, 99.5))))
    panels[1][0].set_title("source")
    for place, (name, image) in enumerate(zip(["measured", *values], [measured, *images], strict=True)):
        plane = np.where(mask, image, np.nan)[:, :, level]
        picture = _show(panels[0][place], plane, TARGET_MAP, row.window)
        panels[0][place].set_title(name if place == 0 else f"{column} {name}")
    for place, change in enumerate(changes, 1):
        difference = _show(panels[1][place], change[:, :, level], ERROR_MAP, (-limit, limit))
        panels[1][place].set_title("change")
    figure.colorbar(picture, ax=panels[0], shrink=0.8, label=row.unit)
    figure.colorbar(difference, ax=panels[1], shrink=0.8, label=row.unit)
    curves = figure.add_subplot(grid[2, :])
    for name, colour in zip(meta_regions(), COLOURS, strict=False):
        part = regions[regions["region"] == name]
        curves.plot(range(len(values)), part["suvr"] - part["measured"], "o-", color=colour, lw=1.4, ms=3.5, label=name)
    curves.axhline(0, color=MUTED, lw=0.7, ls=(0, (2, 3)))
    curves.set_xticks(range(len(values)), list(values))
    curves.set_xlabel(column, color=MUTED)
    curves.set_ylabel(f"change ({row.unit})")
    curves.legend(ncols=3, fontsize=7.5)
    return figure


def _show(axes: mpl.axes.Axes, plane: Floats, colours: str, window: tuple[float, float]) -> mpl.image.AxesImage:
    palette = mpl.colormaps[colours].with_extremes(bad="white" if colours == ERROR_MAP else "#101418")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(plane.T, cmap=palette, vmin=window[0], vmax=window[1], origin="lower", interpolation="nearest")
