"""Conversion page: a contact sheet with one card per scan, the worst first, in one HTML file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dualflow.data.quality_metrics import QualityMetric, quality_metric
from dualflow.data.tsv import MISSING, all_numbers, numbers
from dualflow.errors import DataError
from dualflow.inference.conversion_table import THRESHOLD, is_threshold, worst_first
from dualflow.inference.provenance import DISCLAIMER
from dualflow.layout import Scan
from dualflow.report.card_sheet import Card, Figure, address, load_picture, split_reasons, write_sheet
from dualflow.report.tables import Table

MAX_EMBEDDED = 200
"""Number of pictures up to which the page embeds them; beyond, it refers to their files."""
MAX_CARDS, MAX_LINES = 500, 100
"""Number of scans with a picture, and of scans without one, that the page shows."""
MIN_REPEATED = 3
"""Number of scans from which a reason is listed as a frequent one."""
MAX_REASONS = 10
TABLE = "conversion.tsv"
REQUIRED = ("scan", "verdict", "reason")
NOT_FIGURES = (*REQUIRED, "converted")
"""Columns that are no figures; single detectors, `z_NAME`, are none for the page either."""
MODEL = "model"
"""Column that is a figure where the scans are of several models."""
# Numbers, and words with digits or slashes such as keys and file names.
_VARIABLE = re.compile(r"\S*[\d/]\S*")


class Verdict(NamedTuple):
    """How a verdict is shown: the CSS class of its cards, and its text in the summary."""

    tone: str
    summary: str


# From worst to best.
VERDICTS = {
    "failed": Verdict("failed", "failed"),
    "refused": Verdict("failed", "refused"),
    "review": Verdict("flagged", "for review"),
    "ok": Verdict("", "ok"),
}


class Definition(NamedTuple):
    """A figure of the table: how it is shown, and what it means."""

    metric: QualityMetric
    meaning: str


FIGURES = {
    "typicality": Definition(
        QualityMetric("typicality", "", ".2f"),
        "Distance of the source from those of the training over the whole brain. Higher is less typical.",
    ),
    "lesion": Definition(
        QualityMetric("lesion map", "", ".2f"),
        "Largest local deviation of the source from what the training's brains explain, such as a lesion.",
    ),
    "template_mi": Definition(
        QualityMetric("MI with the template", "nats", ".3f"),
        "Mutual information of source and template after registration. Higher is better.",
    ),
    "template_dice": Definition(
        QualityMetric("Dice", "", ".3f"), "Overlap of the registered brain with the template's."
    ),
    "coverage": Definition(
        QualityMetric("in view", "", ".3f"), "Share of the template's brain inside the source's field of view."
    ),
    "rotation_deg": Definition(QualityMetric("rotation", "°", ".1f"), "Angle between the head and its header's axes."),
    "voxel_mm": Definition(QualityMetric("voxel edge", "mm", ".2f"), "Largest voxel edge of the source."),
    "brain_ml": Definition(QualityMetric("brain volume", "mL", ".0f"), "Volume of the brain mask."),
    "output_mean": Definition(QualityMetric("mean", "", ".2f"), "Mean of the expected image inside the brain."),
    "output_p99": Definition(
        QualityMetric("99th percentile", "", ".2f"), "99th percentile of the expected image inside the brain."
    ),
    "output_spread": Definition(
        QualityMetric("mean SD", "", ".3f"), "Mean standard deviation of the samples inside the brain."
    ),
    "age": Definition(QualityMetric("age", "", ".4g"), ""),
    "seconds": Definition(QualityMetric("computing time", "s", ".1f"), ""),
    MODEL: Definition(QualityMetric("model", "", ""), "First digits of the SHA-256 of the model's weights."),
}
"""Known figures by column, in the order of the cards; other columns follow under their own names."""


def write_conversion_page(
    path: Path,
    table: pd.DataFrame,
    *,
    title: str,
    model: str,
    figures: Mapping[str, Path],
    date: str = "",
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the page of a conversion to `path` atomically; equal inputs give identical bytes.

    Args:
        path: HTML file, beside the folders of the scans and conversion.tsv.
        table: one row per scan: `scan`, `verdict`, `reason` (joined by '; '), and any columns of figures. The column
            `NAME_threshold` holds the value of the column `NAME` from which a scan is for review.
        title: heading of the page.
        model: name and digest of the model.
        figures: pictures by key of the scan. Other scans take one line each.
        date: date of the conversion; '' for none.
        ranges: lowest and highest value of a column among the scans of the training, where known.

    Raises:
        DataError: the table lacks a column, or has an unknown verdict.
    """
    table = worst_first(_checked(table))
    pictured = table["scan"].isin(list(figures))
    shown = table[pictured.groupby(pictured).cumcount() < pictured.map({True: MAX_CARDS, False: MAX_LINES})]
    embedded = min(int(pictured.sum()), MAX_CARDS) <= MAX_EMBEDDED
    columns = [name for name in table.columns if _is_figure(table, str(name))]
    columns.sort(key=lambda name: list(FIGURES).index(name) if name in FIGURES else len(FIGURES))
    columns = [name for name in columns if table[name].notna().any() and (name != MODEL or table[MODEL].nunique() > 1)]
    counts = {name: int((table["verdict"] == name).sum()) for name in VERDICTS}
    write_sheet(
        path,
        "conversion.html",
        _cards(shown, columns, path, figures, embedded, ranges or {}),
        title=title,
        summary=_summary(counts, model, date),
        disclaimer=DISCLAIMER,
        reasons=_frequent_reasons(table),
        groups={name: f"{name} ({count})" for name, count in counts.items() if count},
        orders={name: _metric(name).label for name in columns if all_numbers(table[name])},
        meanings={
            _metric(name).label: FIGURES[name].meaning for name in columns if name in FIGURES and FIGURES[name].meaning
        },
        total=len(table),
        shown=len(shown),
        table_name=TABLE,
        embedded=embedded,
    )


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with None for missing cells, after a check of its columns and verdicts."""
    missing = sorted(set(REQUIRED) - set(table.columns))
    if missing:
        raise DataError(f"{TABLE} has no column '{missing[0]}'; expected {', '.join(REQUIRED)}: convert again")
    unknown = sorted(set(table["verdict"].map(str)) - set(VERDICTS))
    if unknown:
        raise DataError(f"{TABLE}: verdict '{unknown[0]}' is unknown, expected {', '.join(VERDICTS)}; convert again")
    return table.astype(object).where(table.notna() & ~table.isin(MISSING), None)


def _is_figure(table: pd.DataFrame, column: str) -> bool:
    return column not in NOT_FIGURES and not column.startswith("z_") and not is_threshold(table, column)


def _metric(column: str) -> QualityMetric:
    return FIGURES[column].metric if column in FIGURES else quality_metric(column)


def _summary(counts: Mapping[str, int], model: str, date: str) -> str:
    total = sum(counts.values())
    verdicts = ", ".join(f"{count} {VERDICTS[name].summary}" for name, count in counts.items() if count)
    scans = f"{total} scan{'' if total == 1 else 's'}" + (f": {verdicts}" if verdicts else "")
    return ". ".join(part for part in (scans, f"Model {model}", date) if part) + "."


def _frequent_reasons(table: pd.DataFrame) -> Table | None:
    """The reasons that several scans share apart from numbers and file names; None without such a reason."""
    reasons = [
        (verdict, reason)
        for verdict, cell in zip(table["verdict"], table["reason"], strict=True)
        for reason in _reasons(verdict, cell)
    ]
    counts = Counter((verdict, _VARIABLE.sub("", reason)) for verdict, reason in reasons)
    examples = {(verdict, _VARIABLE.sub("", reason)): reason for verdict, reason in reversed(reasons)}
    rows = [
        (count, verdict, examples[verdict, pattern])
        for (verdict, pattern), count in counts.most_common(MAX_REASONS)
        if count >= MIN_REPEATED
    ]
    if not rows:
        return None
    return Table(
        "Numbers and names are those of the first scan.", pd.DataFrame(rows, columns=["Scans", "Verdict", "Reason"])
    )


def _reasons(verdict: str, cell: str | None) -> list[str]:
    """The reasons of a scan; the message of an error is a single reason, and may itself hold a ';'."""
    return split_reasons(cell or "") if VERDICTS[verdict].tone != "failed" else [cell] if cell else []


def _cards(
    table: pd.DataFrame,
    columns: Sequence[str],
    page: Path,
    figures: Mapping[str, Path],
    embedded: bool,
    ranges: Mapping[str, tuple[float, float]],
) -> Iterator[Card]:
    """Yield the cards; each picture is read when its card is written."""
    values = pd.DataFrame({name: numbers(table[name]) for name in columns})
    limits = {
        str(name).removesuffix(THRESHOLD): numbers(table[name]) for name in table.columns if is_threshold(table, name)
    }
    numeric = [name for name in columns if all_numbers(table[name])]
    for index, row in enumerate(table.to_dict("records")):
        known = {name: float(values[name].iloc[index]) for name in numeric if not np.isnan(values[name].iloc[index])}
        thresholds = {name: float(limits[name].iloc[index]) for name in limits}
        texts = [
            _figure(name, known[name], thresholds.get(name, np.nan), ranges.get(name))
            if name in known
            else Figure(_metric(name).label, str(row[name]))
            for name in columns
            if row[name] is not None
        ]
        scan, verdict = str(row["scan"]), row["verdict"]
        file = figures.get(scan)
        if file is None:  # a line has room for the figures that can be compared
            texts = [figure for figure in texts if figure.note]
        yield Card(
            scan=scan,
            group=verdict,
            tone=VERDICTS[verdict].tone,
            badge=verdict,
            reasons=_reasons(verdict, row["reason"]),
            figures=texts,
            values=known,
            picture=load_picture(file, None if embedded else page) if file else None,
            missing=f"The picture {file.name} is missing or cannot be read; convert this scan again." if file else "",
            alt=_description(scan, verdict),
            link=_folder(scan, page),
        )


def _figure(column: str, value: float, threshold: float, span: tuple[float, float] | None) -> Figure:
    """A number with its threshold or the range of the training."""
    metric = _metric(column)
    if not np.isnan(threshold):
        return Figure(metric.label, metric.text(value), f"threshold {metric.text(threshold)}", value > threshold)
    if span is not None:
        ends = f"{span[0]:{metric.format_spec}} to {metric.text(span[1])}"
        return Figure(metric.label, metric.text(value), f"training {ends}", not span[0] <= value <= span[1])
    return Figure(metric.label, metric.text(value))


def _description(scan: str, verdict: str) -> str:
    return (
        f"{scan}, verdict {verdict}: rows with the source scan, the expected image and its standard deviation, each in "
        "a sagittal, a coronal and an axial plane with left on the left"
    )


def _folder(scan: str, page: Path) -> str:
    """Address of a scan's folder; '' if it has none."""
    try:
        folder = page.parent / Scan.parse(scan).folder
    except DataError:  # the key comes from a file
        return ""
    return f"{address(folder, page)}/" if folder.is_dir() else ""
