"""Style of the report's figures, and their rendering to PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec
from weakref import WeakKeyDictionary

import matplotlib as mpl
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from dualflow.commit import committing

DPI = 150
PAGE_PIXELS = 880
"""Largest width of a figure on the page of a tracked run, pixels. MLflow does not scale it; this fits beside its menus
on a laptop."""
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e7eb"
COLOURS = ("#1f5fa8", "#d1662b", "#3c8d53", "#8a4fa3", "#b8860b", "#5b6770", "#c2406e", "#2a9d9d")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names of columns and levels may hold dollar signs
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
    """Decorator: draw under STYLE without changing matplotlib's global settings."""

    @wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_styled


def palette(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model, shared by all figures of a page; further ones are lighter."""
    return {model: _lighter(COLOURS[index % len(COLOURS)], index // len(COLOURS)) for index, model in enumerate(models)}


def _lighter(colour: str, times: int) -> str:
    kept = 0.55**times
    return to_hex([1 - kept * (1 - part) for part in to_rgb(colour)]) if times else colour


# Figures of the report are embedded and written as files, and rendering them takes most of the report's time.
_RENDERED: WeakKeyDictionary[Figure, bytes] = WeakKeyDictionary()


def to_png(figure: Figure) -> bytes:
    """Render to PNG bytes that depend on the figure alone; a figure is rendered once, so draw it to its end before."""
    if figure not in _RENDERED:
        _RENDERED[figure] = _render(figure, DPI)
    return _RENDERED[figure]


def to_page_png(figure: Figure) -> bytes:
    """Render like `to_png`, but at most PAGE_PIXELS wide."""
    return _render(figure, min(DPI, int(PAGE_PIXELS / figure.get_figwidth())))


def _render(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        # Each drawing shifts a constrained layout slightly; fixing it makes repeated renderings identical.
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write `figure` as PNG to `path` atomically."""
    with committing(path) as temp:
        temp.write_bytes(to_png(figure))
