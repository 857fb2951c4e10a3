"""Draw the README's figure: MR, synthetic PET, its spread and the real PET of one held-out subject of a finished study.

The subject is the held-out one of median error, so the picture is typical and not chosen.
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dualflow.config import load_config
from dualflow.data.index import read_pairs
from dualflow.data.tsv import read_typed_table
from dualflow.layout import Scan, training_key
from dualflow.modalities import modality

Volume = NDArray[np.float32]


@click.command()
@click.option("--config", "config_path", default="configs/quickstart.yaml", show_default=True, help="A finished study.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace one value.")
@click.option("--out", default="docs/images/example.png", show_default=True, help="The PNG file to write.")
def main(config_path: str, overrides: tuple[str, ...], out: str) -> None:
    """Write the figure of one held-out subject."""
    config = load_config(config_path, overrides)
    layout = config.layout
    source, target = modality(config.study.source), modality(config.study.target)
    name, seed = next(iter(config.flows)), config.train.seeds[0]
    scores = read_typed_table(layout.table(f"scans_{training_key(name, seed)}")).sort_values("mae")
    row = scores.iloc[len(scores) // 2]
    scan = Scan.parse(row["scan"])
    mask = _canonical(layout.mask_native(scan, source)) > 0
    pairs = read_pairs(layout).set_index("scan")
    mr = _canonical(config.bids / pairs.loc[scan.key, "source"])
    mr = mr / np.percentile(mr[mask], 99.5)
    spread = np.where(mask, _canonical(layout.synthetic(scan, source, target, "synthstd")), np.nan)
    columns = [
        ("MR (T1-weighted)", mr, "gray", (0.0, 1.1), None),
        ("synthetic PET", _canonical(layout.synthetic(scan, source, target, "synth")), "magma", target.window, "SUVR"),
        ("its spread (SD)", spread, "viridis", (0.0, _upper(spread[mask])), "SUVR"),
        ("real PET", _canonical(layout.target_native(scan, source, target)), "magma", target.window, "SUVR"),
    ]
    figure = _draw(columns, mask, _spacing(layout.mask_native(scan, source)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=104, metadata={"Software": None}, pil_kwargs={"optimize": True})
    click.echo(f"{out}: {scan.key}, MAE {row['mae']:.4f} {target.unit}")


def _canonical(path: Path) -> Volume:
    """Voxels with the first axis to the subject's right, the second to the front, the third to the top."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, np.float32)


def _spacing(path: Path) -> tuple[float, ...]:
    return tuple(float(edge) for edge in nib.as_closest_canonical(nib.load(path)).header.get_zooms()[:3])


def _upper(values: Volume) -> float:
    """The 99th percentile, rounded up to two decimals."""
    return float(np.ceil(np.percentile(values, 99) * 100) / 100)


def _draw(
    columns: list[tuple[str, Volume, str, tuple[float, float], str | None]],
    mask: NDArray[np.bool_],
    spacing: tuple[float, ...],
) -> Figure:
    """Two rows, axial and coronal, and a column per volume with its title, colours, window and unit."""
    centre = [round(float(axis.mean())) for axis in np.nonzero(mask)]
    low = [max(int(axis.min()) - 12, 0) for axis in np.nonzero(mask)]
    high = [int(axis.max()) + 12 for axis in np.nonzero(mask)]
    box = tuple(slice(start, end) for start, end in zip(low, high, strict=True))
    size = [(end - start) * edge for start, end, edge in zip(low, high, spacing, strict=True)]
    figure = Figure(figsize=(9.6, 5.4), layout="constrained", facecolor="white")
    grid = figure.subplots(2, len(columns), gridspec_kw={"height_ratios": [size[1], size[2]]})
    for column, (title, volume, colours, window, unit) in enumerate(columns):
        palette = mpl.colormaps[colours].with_extremes(bad="black")
        axial, coronal = volume[box[0], box[1], centre[2]], volume[box[0], centre[1], box[2]]
        for axes, plane, height in zip(grid[:, column], (axial, coronal), (spacing[1], spacing[2]), strict=True):
            picture = axes.imshow(
                plane.T, cmap=palette, vmin=window[0], vmax=window[1], origin="lower", aspect=height / spacing[0]
            )
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[0, column].set_title(title, fontsize=12)
        bar = figure.colorbar(picture, ax=grid[:, column], location="bottom", aspect=16, pad=0.02, shrink=0.85)
        bar.outline.set_visible(False)
        if unit is None:
            bar.ax.set_axis_off()
            bar.solids.set_visible(False)
            continue
        bar.set_ticks(list(window), labels=[f"{edge:g}" for edge in window])
        bar.set_label(unit, fontsize=10, labelpad=-6)
    for axes, name in zip(grid[:, 0], ("axial", "coronal"), strict=True):
        axes.set_ylabel(name, fontsize=11)
        for x, label, side in ((0.03, "L", "left"), (0.97, "R", "right")):
            axes.text(x, 0.97, label, transform=axes.transAxes, ha=side, va="top", color="white", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
