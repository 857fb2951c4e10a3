"""STUDY_METRICS: scores of all scans together, such as a correlation over people, and their bootstrap."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dualflow.arrays import Floats
from dualflow.evaluation.calibration import distance_from_uniform
from dualflow.evaluation.measures import Measure, StudyMetric
from dualflow.evaluation.metrics import METRICS
from dualflow.layout import Scan

RESAMPLES_AT_ONCE = 100
"""Number of resamples whose weights are in memory at once."""
ROUNDING = 1e-9
"""Largest deviation from a constant, relative to the largest value, that counts as none."""
TRUE_LAW = "true_law"
"""Row of the score table that scores samples of the true law of a simulated cohort."""
TRUE_SPREAD = "true_person_spread"
"""Column with the spread that the true law gives a person."""


class Resampled(NamedTuple):
    """A study metric of one model.

    Attributes:
        value: of all subjects.
        draws: of each bootstrap resample, `[B]`.
        subjects: number of subjects.
    """

    value: float
    draws: Floats
    subjects: int


def with_true_spread(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column TRUE_SPREAD from the rows of TRUE_LAW; the table is returned unchanged without them."""
    truth = table[table["model"] == TRUE_LAW]
    if truth.empty or "person_spread" not in truth:
        return table
    return table.assign(**{TRUE_SPREAD: table["scan"].map(truth.groupby("scan")["person_spread"].mean())})


def resample(table: pd.DataFrame, metric: StudyMetric, counts: pd.DataFrame) -> Resampled | None:
    """Compute a study metric of one model, and of every bootstrap resample of its subjects.

    Values of several seeds are averaged, as those of METRICS are. Predictions that were averaged first would correlate
    better with the truth, so that a model with more seeds would win.

    A distance is larger in a resample, because a resample repeats people. The draws are therefore shifted by their
    bias, the difference of their mean to the value, and cut at the ends of the metric's range.

    A correlation over people is one within trainings: what a fold predicts too high or too low for everyone is taken
    off first.

    Args:
        table: rows of one model, with `scan`, the metric's columns, and `seed` and `fold` where there are several.
        metric: a row of STUDY_METRICS.
        counts: how often each resample has a subject, one row per resample and one column per subject.

    Returns:
        None if the table lacks a column, or if the metric is not defined, as a correlation with a constant.
    """
    if not {*metric.columns} <= {*table}:
        return None
    subject = table["scan"].map(lambda key: Scan.parse(str(key)).subject)
    trainings = [column for column in ("seed", "fold") if column in table]
    rows = table[[*metric.columns, *trainings]].assign(subject=subject).dropna()
    rows = rows[rows["subject"].isin(counts.columns)]
    seeds = [part for _, part in rows.groupby("seed")] if "seed" in rows else [rows]
    results = [result for part in seeds if (result := _resample_seed(part, metric, counts)) is not None]
    if not results:
        return None
    value, draws = float(np.mean([one for one, _ in results])), np.mean([drawn for _, drawn in results], axis=0)
    # Not shifted on Fisher's z scale: resamples of two people, frequent in small studies, correlate at exactly 1.
    draws = np.clip(draws - np.nanmean(draws) + value, *metric.limits)
    return Resampled(value, draws, rows["subject"].nunique())


def _resample_seed(rows: pd.DataFrame, metric: StudyMetric, counts: pd.DataFrame) -> tuple[float, Floats] | None:
    """Value of one seed, and of each resample `[B]`; None if it is not defined."""
    if rows.empty:
        return None
    columns = list(metric.columns)
    if metric.by_subject:
        rows = rows.assign(**_within_folds(rows, columns))
        rows = rows.groupby("subject", sort=False)[columns].mean().reset_index()
    # The rows of a subject share its weight.
    share = 1 / rows.groupby("subject")["subject"].transform("size").to_numpy(np.float64)
    values = rows[columns].to_numpy(np.float64)
    value = float(metric.function(values, share[None])[0])
    if not np.isfinite(value):
        return None
    draws = np.full(len(counts), np.nan)
    for begin in range(0, len(counts), RESAMPLES_AT_ONCE):
        block = slice(begin, begin + RESAMPLES_AT_ONCE)
        weights = counts.iloc[block][rows["subject"]].to_numpy(np.float64) * share
        drawn = weights.any(axis=1)
        draws[block][drawn] = metric.function(values, weights[drawn])
    return value, draws


def study_scores(table: pd.DataFrame) -> dict[str, float]:
    """Values of the STUDY_METRICS that apply to the rows of one model, without a bootstrap."""
    subjects = sorted({Scan.parse(str(key)).subject for key in table["scan"]})
    everyone = pd.DataFrame(np.ones((1, len(subjects))), columns=subjects)
    results = {name: resample(table, metric, everyone) for name, metric in STUDY_METRICS.items()}
    return {name: result.value for name, result in results.items() if result is not None}


def _within_folds(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Values of a seed less their mean in their fold; exactly 0 where that is rounding, as of a constant."""
    values = rows[columns]
    centred = values - (rows.groupby("fold")[columns].transform("mean") if "fold" in rows else values.mean())
    return centred.where(centred.abs() > ROUNDING * values.abs().max(), 0.0)


def weighted_correlation(values: Floats, weights: Floats) -> Floats:
    """Pearson correlation of two columns; NaN if either is constant."""
    if len(values) < 3 or not (np.ptp(values, axis=0) > 0).all():
        return np.full(len(weights), np.nan)
    weights = weights / weights.sum(axis=1, keepdims=True)
    centred = values - values.mean(axis=0)
    mean = weights @ centred
    xx, yy, xy = (
        weights @ (centred[:, i] * centred[:, j]) - mean[:, i] * mean[:, j] for i, j in ((0, 0), (1, 1), (0, 1))
    )
    scale = np.sqrt(np.clip(xx, 0, None) * np.clip(yy, 0, None))
    return np.asarray(np.divide(xy, scale, out=np.full_like(xy, np.nan), where=scale > 0))


STUDY_METRICS: dict[str, StudyMetric] = {
    "contrast_pit_distance": StudyMetric(
        distance_from_uniform,
        "Contrast PIT distance",
        "",
        "lower",
        columns=("contrast_pit",),
        meaning="Deviation from the uniform distribution of the contrast's probability integral transform over scans",
        by_subject=False,
        kind="samples",
        over="people",
        values="0 to 0.5",
    ),
    "ad_roi_r": StudyMetric(
        weighted_correlation,
        "AD signature r",
        "",
        "higher",
        columns=("ad_roi_estimate", "ad_roi_real"),
        meaning="Correlation over people of the estimated and the real mean of the AD signature region",
        over="people",
        values="-1 to 1",
    ),
    "person_spread_r": StudyMetric(
        weighted_correlation,
        "Person spread r, error",
        "",
        "higher",
        columns=("person_spread", "person_error"),
        meaning="Correlation over people of the predicted spread of region means with their error",
        kind="distribution",
        over="people",
        values="-1 to 1",
    ),
    "person_spread_true_r": StudyMetric(
        weighted_correlation,
        "Person spread r, true spread",
        "",
        "higher",
        columns=("person_spread", TRUE_SPREAD),
        meaning="Correlation over people of the predicted spread of region means with that of the true law",
        kind="distribution",
        over="people",
        values="-1 to 1",
    ),
}


def measure(name: str) -> Measure[Any]:
    """The row of METRICS or STUDY_METRICS with this name."""
    return METRICS[name] if name in METRICS else STUDY_METRICS[name]
