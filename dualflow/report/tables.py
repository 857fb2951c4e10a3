"""Tables of the report: formatting of numbers, and marking of the best value of each column."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10
from typing import Any

import numpy as np
import pandas as pd

from dualflow.data.markdown import p_value
from dualflow.evaluation.statistics import (
    MIN_CORRELATED,
    MIN_SUBJECTS,
    OF_ONE_MEAN,
    UNRANKED,
    is_within_slack,
    least_people,
)
from dualflow.evaluation.study_metrics import measure
from dualflow.modalities import Modality

Entry = Mapping[Hashable, Any]
"""A row of a table of results."""
VERDICTS = {
    "better": "better", "worse": "worse", "undecided": "no clear difference", "equal": "equal by construction",
    "unranked": "not ranked", "few": "too few subjects",
}  # fmt: skip
WITHIN_SLACK = "within the slack"
"""Verdict on a difference that the statistics call clear, but not beyond the accuracy of the scores."""
UNKNOWN = "–"  # noqa: RUF001 - an en dash, as in typeset tables


@dataclass(frozen=True)
class Table:
    """A formatted table.

    Attributes:
        caption: description of the numbers.
        frame: cells as text, or as values with a readable `str`.
        best: (row, column) positions printed in bold.
    """

    caption: str
    frame: pd.DataFrame
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)


def metric_table(
    summary: pd.DataFrame, row: Modality, metrics: Sequence[str], caption: str, *, without: Sequence[str] = ()
) -> Table:
    """One row per model and one column per metric, with mean and 95 % interval; the best mean of a column is bold.

    Of too few subjects there is neither interval nor bold, and the caption says so. Models without any of the metrics
    have no row. Models in `without`, such as limits that only a simulation knows, are never bold; nor is a value of
    UNRANKED metrics, or of those OF_ONE_MEAN.
    """
    present = [metric for metric in metrics if metric in set(summary["metric"])]
    indexed = {(entry["model"], entry["metric"]): entry for entry in summary.to_dict("records")}
    models = list(dict.fromkeys(summary.loc[summary["metric"].isin(present), "model"]))
    cells = {
        measure(metric).heading(row): [_mean_cell(indexed, model, metric) for model in models] for metric in present
    }
    best = set()
    for column, metric in enumerate(present, 1):
        losses = [
            float(measure(metric).loss(np.asarray(indexed[model, metric]["mean"])))
            if (model, metric) in indexed and model not in without and _is_ranked(indexed[model, metric])
            else np.inf
            for model in models
        ]
        # Losses that print equally are equally good: bold shows no difference that the digits hide.
        digits = measure(metric).digits
        best |= {(i, column) for i, loss in enumerate(losses) if np.isfinite(loss) and _same(loss, min(losses), digits)}
    shown = summary[summary["metric"].isin(present)]
    return Table(with_interval_note(caption, shown), pd.DataFrame({"Model": models, **cells}), frozenset(best))


def difference_table(differences: pd.DataFrame, row: Modality, metrics: Sequence[str], caption: str) -> Table:
    """One row per model and metric: paired difference to the reference with interval, p-value and verdict."""
    selected = differences[differences["metric"].isin(list(metrics))]
    rows = [
        {
            "Model": entry["model"],
            "Reference": entry["reference"],
            "Metric": measure(entry["metric"]).heading(row),
            "Difference": _interval(
                entry, "difference", difference_digits(entry, measure(entry["metric"]).digits), sign="+"
            ),
            "Wilcoxon p (Holm)": UNKNOWN if np.isnan(entry["p_holm"]) else p_value(entry["p_holm"], 3),
            "Verdict": _verdict(entry),
        }
        for entry in selected.to_dict("records")
    ]
    caption = with_interval_note(caption, selected)
    if any(entry["verdict"] == "few" and _has_interval(entry) for entry in selected.to_dict("records")):
        caption += " Too few subjects: after Holm's adjustment over so many models, no p could be below 0.05."
    return Table(caption, pd.DataFrame(rows))


def with_interval_note(caption: str, rows: pd.DataFrame) -> str:
    """The caption of a table, with a note on the intervals; `rows` have columns `metric` and `subjects`."""
    lacking = [entry for entry in rows.to_dict("records") if not _enough_people(entry)]
    notes = {
        MIN_SUBJECTS: f" Means of fewer than {MIN_SUBJECTS} subjects have no interval.",
        MIN_CORRELATED: f" Scores over fewer than {MIN_CORRELATED} people have no interval.",
    }
    return caption + "".join(
        notes[least] for least in sorted({least_people(str(entry["metric"])) for entry in lacking})
    )


def plain_table(frame: pd.DataFrame, caption: str, *, digits: int = 3) -> Table:
    """Any small table, with rounded floats and a dash for missing values."""
    return Table(caption, frame.map(lambda value: _plain(value, digits)))


def difference_digits(row: Entry, digits: int) -> int:
    """The decimals of a difference: `digits`, or more where an end of a clear difference would print as 0."""
    nearest = min(abs(float(row["low"])), abs(float(row["high"])))
    hidden = row["verdict"] in ("better", "worse") and nearest > 0 and round(nearest, digits) == 0
    return 1 - floor(log10(nearest)) if hidden else digits


def _verdict(row: Entry) -> str:
    if row["verdict"] == "undecided" and not _has_interval(row):
        return "not finite"
    return WITHIN_SLACK if is_within_slack(row) else VERDICTS[row["verdict"]]


def _mean_cell(indexed: Mapping[tuple[str, str], Entry], model: str, metric: str) -> str:
    return metric_cell(indexed[model, metric], metric) if (model, metric) in indexed else UNKNOWN


def metric_cell(row: Entry, metric: str) -> str:
    """The mean in a row of `summarise`, with its interval if the row has enough subjects for one."""
    return _interval(row, "mean", measure(metric).digits)


def _interval(row: Entry, column: str, digits: int, sign: str = "") -> str:
    """The value in `column` with the row's interval, if the row has enough subjects for one."""
    # z: a value that rounds to zero has no sign.
    form = f"{sign}z.{digits}f"
    text = f"{float(row[column]):{form}}"
    if not _has_interval(row):
        return text
    return f"{text} [{float(row['low']):{form}}, {float(row['high']):{form}}]"


def _enough_people(row: Entry) -> bool:
    return bool(row["subjects"] >= least_people(str(row["metric"])))


def _has_interval(row: Entry) -> bool:
    return _enough_people(row) and not np.isnan(row["low"])


def _is_ranked(row: Entry) -> bool:
    return row["metric"] not in (*UNRANKED, *OF_ONE_MEAN) and _has_interval(row)


def _same(first: float, second: float, digits: int) -> bool:
    return round(first, digits) == round(second, digits)


def _plain(value: object, digits: int) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return UNKNOWN
    return f"{value:z.{digits}f}" if isinstance(value, float) else str(value)
