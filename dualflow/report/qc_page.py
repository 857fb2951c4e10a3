"""The quality control page: a contact sheet with one card per scan, flagged scans first, in one file.

It is written scan by scan, so that hundreds of pictures are never held at once.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dualflow.commit import committing
from dualflow.data.quality_metrics import quality_metric
from dualflow.data.quarantine import Quarantine
from dualflow.data.tsv import all_numbers, numbers
from dualflow.report.study_page import data_uri, template
from dualflow.report.tables import plain_table

NOT_FIGURES = ("scan", "subject", "session", "flags")


@dataclass(frozen=True)
class Dot:
    """One scan in a strip plot: its place in an area of `WIDTH` by `HEIGHT`."""

    scan: str
    x: float
    y: float
    text: str
    flagged: bool


@dataclass(frozen=True)
class Strip:
    """How one figure is spread over the study: a dot per scan, flagged ones last and so on top."""

    label: str
    low: str
    median: str
    high: str
    middle: float
    dots: Sequence[Dot]

    WIDTH, HEIGHT, MARGIN = 240, 36, 5


@dataclass(frozen=True)
class Card:
    """One scan of the contact sheet.

    Attributes:
        scan: its key.
        flags: why it is to be looked at.
        figures: label and text of each quality figure.
        values: the known ones as numbers, by column, to sort by.
        picture: address that holds the picture; None where `missing` names the file that could not be read.
        size: width and height of the picture in pixels.
        missing: name of the picture's file.
    """

    scan: str
    flags: Sequence[str]
    figures: Sequence[tuple[str, str]]
    values: dict[str, float]
    picture: str | None
    size: tuple[int, int]
    missing: str


def render_sheet(
    path: Path, title: str, quality: pd.DataFrame, quarantine: Sequence[Quarantine], picture: Callable[[str], Path]
) -> None:
    """Write the page to `path` atomically; equal inputs give equal bytes.

    Args:
        path: HTML file.
        title: heading of the page.
        quality: text cells, a row per scan: `scan`, `flags` (joined by '; '), and any columns of figures.
        quarantine: the scans set aside.
        picture: file of a scan's picture, by its key.
    """
    table = _flagged_first(quality)
    columns = [name for name in table.columns if name not in NOT_FIGURES and _is_figure(table[name])]
    flagged = int(table["flags"].map(bool).sum())
    script = files("dualflow.report").joinpath("qc.js").read_text("utf-8")
    page = template("qc.html").stream(
        title=title,
        scans=len(table),
        summary=_summary(len(table), flagged, len(quarantine)),
        aside=plain_table(
            pd.DataFrame([asdict(entry) for entry in quarantine], columns=["scan", "step", "reason"]),
            f"{len(quarantine)} set aside.",
        ),
        strips=[_strip(table, name) for name in columns] if len(table) > 1 else [],
        orders={name: quality_metric(name).label for name in columns},
        cards=_cards(table, columns, picture),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with committing(path) as temp:
        page.dump(str(temp), encoding="utf-8")


def _flags(cell: str) -> list[str]:
    return [flag for flag in cell.split("; ") if flag]


def _flagged_first(quality: pd.DataFrame) -> pd.DataFrame:
    """Scans with more flags first, then by key; without flags the cell is empty."""
    table = quality.assign(flags=quality["flags"].fillna(""))
    order = table["flags"].map(lambda cell: -len(_flags(cell)))
    return table.assign(order=order).sort_values(["order", "scan"]).drop(columns="order").reset_index(drop=True)


def _is_figure(column: pd.Series) -> bool:
    return bool(column.notna().any()) and all_numbers(column)


def _summary(scans: int, flagged: int, aside: int) -> str:
    noun = "scan" if scans == 1 else "scans"
    return f"{scans} {noun} on the model grid, {flagged} flagged for review, {aside} set aside."


def _strip(table: pd.DataFrame, column: str) -> Strip:
    row, values = quality_metric(column), numbers(table[column])
    low, median, high = values.min(), values.median(), values.max()
    room = Strip.WIDTH - 2 * Strip.MARGIN

    def place(value: float) -> float:
        return round(Strip.MARGIN + room * ((value - low) / (high - low) if high > low else 0.5), 1)

    dots = [
        # The golden ratio spreads neighbours apart, and the same table always gives the same dots.
        Dot(scan, place(value), round(4 + (Strip.HEIGHT - 8) * (0.618034 * index % 1), 1), row.text(value), bool(flags))
        for index, (scan, value, flags) in enumerate(zip(table["scan"], values, table["flags"], strict=True))
        if not np.isnan(value)
    ]
    dots.sort(key=lambda dot: dot.flagged)
    return Strip(row.label, row.text(low), row.text(median), row.text(high), place(median), dots)


def _cards(table: pd.DataFrame, columns: Sequence[str], picture: Callable[[str], Path]) -> Iterator[Card]:
    """The cards one by one: each picture is read when its card is written."""
    values = pd.DataFrame({name: numbers(table[name]) for name in columns})
    for index, (scan, flags) in enumerate(zip(table["scan"], table["flags"], strict=True)):
        row = {name: float(values[name].iloc[index]) for name in columns}
        file = picture(scan)
        uri, size = _embedded(file)
        yield Card(
            scan=scan,
            flags=_flags(flags),
            figures=[(quality_metric(name).label, quality_metric(name).text(value)) for name, value in row.items()],
            values={name: value for name, value in row.items() if not np.isnan(value)},
            picture=uri,
            size=size,
            missing=file.name,
        )


def _embedded(file: Path) -> tuple[str | None, tuple[int, int]]:
    """A picture's address and size in pixels; no address where it cannot be read."""
    try:
        with Image.open(file) as image:
            return data_uri(file.read_bytes(), str(image.get_format_mimetype())), image.size
    except OSError:
        return None, (0, 0)
