"""Quality control page: a contact sheet with one card per scan, flagged scans first, in one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dualflow.data.exclusions import Decision
from dualflow.data.quality_metrics import quality_metric
from dualflow.data.quarantine import Quarantine
from dualflow.data.tsv import all_numbers, cell_text, numbers
from dualflow.digests import digest_of
from dualflow.report.card_sheet import Card, Figure, load_picture, split_reasons, write_sheet
from dualflow.report.tables import UNKNOWN, plain_table

NOT_METRICS = ("scan", "subject", "session", "flags")


@dataclass(frozen=True)
class Dot:
    """One scan in a strip plot: its position in an area of `WIDTH` by `HEIGHT`."""

    scan: str
    x: float
    y: float
    text: str
    flagged: bool


@dataclass(frozen=True)
class Strip:
    """Distribution of one metric over the study: a dot per scan, flagged ones last and therefore on top."""

    label: str
    low: str
    median: str
    high: str
    middle: float
    dots: Sequence[Dot]

    WIDTH, HEIGHT, MARGIN = 240, 36, 5


def render_sheet(
    path: Path,
    title: str,
    quality: pd.DataFrame,
    quarantine: Sequence[Quarantine],
    picture: Callable[[str], Path],
    *,
    people: pd.DataFrame | None = None,
    decisions: Mapping[str, Decision] | None = None,
) -> None:
    """Write the page to `path` atomically; equal inputs give identical bytes.

    Args:
        path: HTML file.
        title: heading of the page.
        quality: text cells, one row per scan: `scan`, `flags` (joined by '; '), and any columns of metrics.
        quarantine: the excluded scans.
        picture: maps the key of a scan to the file of its picture.
        people: facts of the scans' people: a column `scan`, then one per fact, such as split and side information.
        decisions: earlier decisions of the reviewer, by scan.
    """
    table = _flagged_first(quality)
    columns = [name for name in table.columns if name not in NOT_METRICS and _is_metric(table[name])]
    earlier = {scan: row._asdict() for scan, row in (decisions or {}).items()}
    flagged = int(table["flags"].map(bool).sum())
    write_sheet(
        path,
        "qc.html",
        _cards(table, columns, picture, _facts(people)),
        scripts=("cards.js", "decisions.js"),
        decisions=earlier,
        # What a browser keeps belongs to these scans and decisions, not to another study or an edited table.
        key=digest_of([sorted(table["scan"]), earlier])[:12],
        title=title,
        scans=len(table),
        summary=_summary(len(table), flagged, len(quarantine)),
        excluded=plain_table(
            pd.DataFrame([asdict(entry) for entry in quarantine], columns=["scan", "step", "reason"]),
            f"{len(quarantine)} excluded.",
        ),
        strips=[_strip(table, name) for name in columns] if len(table) > 1 else [],
        orders={name: quality_metric(name).label for name in columns},
    )


def _flagged_first(quality: pd.DataFrame) -> pd.DataFrame:
    """Sort by number of flags, then by key; missing flags become empty cells."""
    table = quality.assign(flags=quality["flags"].fillna(""))
    order = table["flags"].map(lambda cell: -len(split_reasons(cell)))
    return table.assign(order=order).sort_values(["order", "scan"]).drop(columns="order").reset_index(drop=True)


def _is_metric(column: pd.Series) -> bool:
    return bool(column.notna().any()) and all_numbers(column)


def _summary(scans: int, flagged: int, excluded: int) -> str:
    noun = "scan" if scans == 1 else "scans"
    return f"{scans} {noun} on the model grid, {flagged} flagged for review, {excluded} excluded."


def _strip(table: pd.DataFrame, column: str) -> Strip:
    metric, values = quality_metric(column), numbers(table[column])
    low, median, high = values.min(), values.median(), values.max()
    width = Strip.WIDTH - 2 * Strip.MARGIN

    def position(value: float) -> float:
        return round(Strip.MARGIN + width * ((value - low) / (high - low) if high > low else 0.5), 1)

    dots = [
        # Multiples of the golden ratio separate neighbouring dots without random numbers.
        Dot(
            scan,
            position(value),
            round(4 + (Strip.HEIGHT - 8) * (0.618034 * index % 1), 1),
            metric.text(value),
            bool(flags),
        )
        for index, (scan, value, flags) in enumerate(zip(table["scan"], values, table["flags"], strict=True))
        if not np.isnan(value)
    ]
    dots.sort(key=lambda dot: dot.flagged)
    return Strip(metric.label, metric.text(low), metric.text(median), metric.text(high), position(median), dots)


def _facts(people: pd.DataFrame | None) -> dict[str, list[Figure]]:
    """Facts of the person by scan, unknown ones as a dash."""
    if people is None:
        return {}
    rows = people.set_index("scan").to_dict("index")
    return {
        str(scan): [Figure(str(name), cell_text(value, UNKNOWN)) for name, value in row.items()]
        for scan, row in rows.items()
    }


def _cards(
    table: pd.DataFrame,
    columns: Sequence[str],
    picture: Callable[[str], Path],
    facts: Mapping[str, Sequence[Figure]],
) -> Iterator[Card]:
    """Yield the cards; each picture is read when its card is written."""
    values = pd.DataFrame({name: numbers(table[name]) for name in columns})
    for index, (scan, flags) in enumerate(zip(table["scan"], table["flags"], strict=True)):
        row = {name: float(values[name].iloc[index]) for name in columns}
        file = picture(scan)
        yield Card(
            scan=scan,
            group="flagged" if flags else "unflagged",
            tone="flagged" if flags else "",
            reasons=split_reasons(flags),
            figures=[
                *facts.get(scan, ()),
                *(Figure(quality_metric(name).label, quality_metric(name).text(value)) for name, value in row.items()),
            ],
            values={name: value for name, value in row.items() if not np.isnan(value)},
            picture=load_picture(file),
            missing=f"The picture {file.name} is missing or cannot be read; preprocess this scan again.",
            alt=_described(scan, split_reasons(flags)),
            decides=True,
        )


def _described(scan: str, flags: Sequence[str]) -> str:
    """What the picture of a scan shows, and why it is flagged."""
    state = f"Flagged: {', '.join(flags)}." if flags else "Not flagged."
    return (
        f"Sagittal, coronal and axial planes of {scan}: the source with the outline of its brain mask, and the other "
        f"images with edges of the source before and after alignment, each with a histogram. {state}"
    )
