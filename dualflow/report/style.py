"""How all figures of the report look, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure

from dualflow.commit import committing

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

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under STYLE without changing matplotlib's settings for anyone else."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def palette(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model, to be used by all figures of a page."""
    return {model: COLOURS[place % len(COLOURS)] for place, model in enumerate(models)}


def to_png(figure: Figure) -> bytes:
    """Render to PNG bytes that depend on nothing but the figure."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        # The layout creeps a little with every drawing: settle it once, so that a second rendering is the same.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write `figure` as PNG to `path` atomically."""
    with committing(path) as temp:
        temp.write_bytes(to_png(figure))
