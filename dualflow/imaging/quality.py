"""One picture per pair for quality control: brain outline on the source, source edges over the target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_gradient_magnitude

from dualflow.commit import committing
from dualflow.imaging.geometry import BoolArray, FloatArray

# Share of the brain's pixels that count as its edges.
EDGE_SHARE = 0.12
_PLANES = ("sagittal", "coronal", "axial")


def save_figure(path: Path, *, title: str, source: FloatArray, mask: BoolArray, targets: dict[str, FloatArray]) -> None:
    """Draw three planes through the brain's middle: the mask's outline on the source, its edges over each target.

    Args:
        path: PNG file.
        title: what stands above the picture.
        source: source `[D, H, W]` on a RAS-aligned isotropic grid.
        mask: brain on that grid.
        targets: row label -> target on that grid, such as before and after alignment; may be empty.
    """
    middle = [int(np.median(index)) for index in np.nonzero(mask)]
    edges = gaussian_gradient_magnitude(source, 1.0)
    threshold = float(np.quantile(edges[mask], 1 - EDGE_SHARE))
    rows = len(targets) + 1
    figure = Figure(figsize=(9, 3 * rows + 0.4), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    figure.suptitle(title, color="white", fontsize=11)
    white = float(np.quantile(source[mask], 0.995))
    for axis, plane in enumerate(_PLANES):
        outline = _slice(mask.astype(np.float32), axis, middle[axis])
        _draw(axes[0, axis], _slice(source, axis, middle[axis]), "gray", white, f"brain mask, {plane}")
        axes[0, axis].contour(outline, levels=[0.5], colors="#ff5533", linewidths=0.8)
        here = _slice(edges, axis, middle[axis])
        for row, (label, target) in enumerate(targets.items(), start=1):
            high = float(np.quantile(target[mask], 0.995)) or 1.0
            _draw(axes[row, axis], _slice(target, axis, middle[axis]), "inferno", high, f"{label}, {plane}")
            axes[row, axis].contour(here, levels=[threshold], colors="#55ddff", linewidths=0.5)
    with committing(path) as temp:
        figure.savefig(temp, dpi=100, metadata={"Software": None})


def _slice(volume: FloatArray, axis: int, index: int) -> FloatArray:
    """One plane as the picture's rows and columns: superior or anterior up, right to the right."""
    return np.asarray(np.take(volume, index, axis=axis).T)


def _draw(axes: Axes, image: FloatArray, colours: str, high: float, label: str) -> None:
    axes.imshow(image, origin="lower", cmap=colours, vmin=0, vmax=high)
    axes.set_title(label, color="white", fontsize=9)
    axes.set_axis_off()
