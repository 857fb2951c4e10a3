"""Tables of the report: formatting of numbers, and marking of the best value of each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dualflow.evaluation.study_metrics import measure
from dualflow.modalities import Modality

VERDICTS = {"better": "better", "worse": "worse", "undecided": "no clear difference", "equal": "equal by construction"}
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

    Models without any of the metrics have no row. Models in `without`, such as upper bounds, are never bold.
    """
    present = [metric for metric in metrics if metric in set(summary["metric"])]
    indexed = summary.set_index(["model", "metric"])
    models = list(dict.fromkeys(summary.loc[summary["metric"].isin(present), "model"]))
    cells = {
        measure(metric).heading(row): [_mean_cell(indexed, model, metric) for model in models] for metric in present
    }
    best = set()
    for column, metric in enumerate(present, 1):
        losses = [
            float(measure(metric).loss(np.asarray(indexed.loc[(model, metric), "mean"])))
            if (model, metric) in indexed.index and model not in without
            else np.inf
            for model in models
        ]
        # Losses that print equally are equally good: bold shows no difference that the digits hide.
        digits = measure(metric).digits
        best |= {(i, column) for i, loss in enumerate(losses) if np.isfinite(loss) and _same(loss, min(losses), digits)}
    return Table(caption, pd.DataFrame({"Model": models, **cells}), frozenset(best))


def difference_table(differences: pd.DataFrame, row: Modality, metrics: Sequence[str], caption: str) -> Table:
    """One row per model and metric: paired difference to the reference with interval, p-value and verdict."""
    selected = differences[differences["metric"].isin(list(metrics))]
    rows = [
        {
            "Model": entry["model"],
            "Reference": entry["reference"],
            "Metric": measure(entry["metric"]).heading(row),
            "Difference": _interval(entry["difference"], entry["low"], entry["high"], entry["metric"], signed=True),
            "Wilcoxon p (Holm)": _p_value(entry["p_holm"]),
            "Verdict": VERDICTS[entry["verdict"]],
        }
        for _, entry in selected.iterrows()
    ]
    return Table(caption, pd.DataFrame(rows))


def plain_table(frame: pd.DataFrame, caption: str, *, digits: int = 3) -> Table:
    """Any small table, with rounded floats and a dash for missing values."""
    return Table(caption, frame.map(lambda value: _plain(value, digits)))


def _mean_cell(indexed: pd.DataFrame, model: str, metric: str) -> str:
    if (model, metric) not in indexed.index:
        return UNKNOWN
    mean, low, high = (float(value) for value in indexed.loc[(model, metric), ["mean", "low", "high"]].to_numpy())
    return _interval(mean, low, high, metric)


def _interval(value: float, low: float, high: float, metric: str, *, signed: bool = False) -> str:
    # z: a value that rounds to zero has no sign.
    form = f"{'+' if signed else ''}z.{measure(metric).digits}f"
    if np.isnan(low):  # too few people for an interval
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _same(first: float, second: float, digits: int) -> bool:
    return round(first, digits) == round(second, digits)


def _p_value(value: float) -> str:
    return UNKNOWN if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _plain(value: object, digits: int) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return UNKNOWN
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
