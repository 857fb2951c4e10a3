"""Comparison of models: means over subjects with bootstrap intervals, and paired differences.

Tables have one row per model, seed and scan, and one column per metric. The bootstrap resamples subjects. Seeds and
visits of one subject are averaged first, because they are not independent. STUDY_METRICS are computed from the same
tables and resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

from dualflow.errors import DataError
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.study_metrics import STUDY_METRICS, Resampled, measure, resample
from dualflow.layout import Scan

KEYS = ("model", "seed", "scan")
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
MIN_SUBJECTS = 6
"""Least number of people for an interval or a test: with 5 the smallest two-sided p of Wilcoxon's test is 0.0625, so no
difference could be significant, and percentiles of resamples of so few values are no 95 % interval."""
MIN_CORRELATED = 20
"""Least number of people for an interval of a score over people: percentile intervals of correlations of fewer are too
narrow, and their ends touch the limits."""
EQUAL = 1e-5
"""Largest difference, relative to the largest value, by which rounding makes equal predictions differ."""
UNRANKED = ("voxel_sharpness", "region_pit_distance")
"""Metrics that are best for the wrong law: a spread that is too narrow is sharp, and where the errors of regions
correlate, one that is too wide brings the distribution of a single scan's values closer to uniform."""
OF_ONE_MEAN = ("spread_error_r",)
"""Metrics of the spread that compare models of about the same error: that of a bad mean is easy to foresee."""
SUMMARY = ("model", "metric", "mean", "low", "high", "sd", "subjects", "seeds")
DIFFERENCES = (
    "model", "reference", "metric", "difference", "low", "high", "gain", "gain_low", "gain_high", "verdict",
    "p", "p_holm", "subjects",
)  # fmt: skip


def summarise(
    table: pd.DataFrame, *, bootstrap: int = 2000, seed: int = 0, metrics: Collection[str] = METRICS.keys()
) -> pd.DataFrame:
    """Mean of each of `metrics` over the subjects of each model, and STUDY_METRICS, with 95 % bootstrap intervals.

    Returns:
        One row per model and metric that applies to it: columns SUMMARY; `sd` is the standard deviation over subjects.
        `low` and `high` are NaN with fewer than `least_people` subjects, and for an infinite mean.

    Raises:
        DataError: the table lacks a key column or has no rows.
    """
    models, subjects, metrics, values = _by_subject(table, metrics)
    counts = _resamples(len(subjects), bootstrap, seed)
    present, means = (~np.isnan(values)).sum(axis=0), _mean(values)
    unknown = (present < MIN_SUBJECTS) | np.isinf(values).any(axis=0)
    low, high = (np.where(unknown, np.nan, end) for end in bootstrap_interval(_resampled(values, counts), present))
    seeds = table.groupby("model")["seed"].nunique()
    rows = []
    for m, model in enumerate(models):
        rows += [
            (
                model, metric, means[m, q], low[m, q], high[m, q],
                _deviation(values[:, m, q]),
                int(present[m, q]), int(seeds[model]),
            )
            for q, metric in enumerate(metrics)
            if present[m, q]
        ]  # fmt: skip
        scans = table[table["model"] == model]
        for metric, row in STUDY_METRICS.items():
            if (study := resample(scans, row, pd.DataFrame(counts, columns=subjects))) is not None:
                ends = _interval(metric, np.asarray(study.draws, np.float64), study.subjects)
                rows.append((model, metric, study.value, *ends, np.nan, study.subjects, int(seeds[model])))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def differences(table: pd.DataFrame, reference: str, *, bootstrap: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Compare each model with `reference` on the same subjects.

    `difference` is model minus reference, with its paired bootstrap interval. `gain` is positive if the model is
    better; for a metric with an ideal value, such as coverage, it is how much closer the model's mean is to that value.
    `p` is the p-value of Wilcoxon's signed-rank test of the paired difference and `p_holm` its Holm adjustment over the
    models of one metric. `verdict` is `better` or `worse` only if the interval of the gain excludes zero and `p_holm`
    is below 0.05, because bootstrap intervals of few subjects are too narrow. STUDY_METRICS have no test, so they are
    `undecided`. A difference of upper bounds is `undecided` if the slack of the larger one can explain it. With fewer
    than `least_people` pairs, or with an infinite value, there is neither interval nor p-value. `few` is the verdict
    with so few pairs, and where Holm's adjustment over the models leaves even the smallest possible p-value of that
    many pairs at 0.05 or above. A model whose value equals that of the reference for every subject, up to rounding, is
    `equal`: its predictions are the same by construction, as those of two models with one mean, so there is nothing to
    test. UNRANKED metrics are `unranked`, without a test, and OF_ONE_MEAN if the MAE is clearly better or worse.

    Raises:
        DataError: the table lacks a key column, has no rows, or does not contain `reference`.
    """
    models, subjects, metrics, values = _by_subject(table, METRICS)
    if reference not in models:
        raise DataError(f"model '{reference}' is not in the table; choose from: {', '.join(models)}")
    reference_index = models.index(reference)
    counts = _resamples(len(subjects), bootstrap, seed)
    slacks = _slacks(table, np.zeros(values.shape[:2]))
    rows = []
    for m, model in enumerate(models):
        if m == reference_index:
            continue
        # Pairs need subjects that both models were scored on.
        both = ~np.isnan(values[:, m]) & ~np.isnan(values[:, reference_index])
        pair = np.where(both[:, None], values[:, [m, reference_index]], np.nan)
        draws, means = _resampled(pair, counts), _mean(pair)
        for q, metric in enumerate(metrics):
            if not both[:, q].any():
                continue
            paired = pair[both[:, q], :, q]
            change = _change(metric, means[:, q], draws[:, :, q], len(paired))
            slack = [slacks[METRICS[metric].slack][both[:, q], at].mean() for at in (m, reference_index)]
            rows.append((model, reference, metric, *_tested(metric, paired, change, slack)))
        for metric, (first, second) in _study_pairs(table, model, reference, pd.DataFrame(counts, columns=subjects)):
            change = _change(
                metric,
                np.array([first.value, second.value]),
                np.stack([first.draws, second.draws], axis=1),
                first.subjects,
            )
            rows.append((model, reference, metric, *change, "", float("nan"), float("nan"), first.subjects))
    tested = pd.DataFrame(rows, columns=list(DIFFERENCES))
    result = _judged(tested)
    other_error = result.loc[(result["metric"] == "mae") & result["verdict"].isin(["better", "worse"]), "model"]
    unranked = tested["metric"].isin(OF_ONE_MEAN) & tested["model"].isin(other_error)
    return _judged(tested.assign(verdict=tested["verdict"].mask(unranked, "unranked"), p=tested["p"].mask(unranked)))


def _judged(tested: pd.DataFrame) -> pd.DataFrame:
    """Rows of `differences` with Holm's adjustment over the tests of a metric, and the verdicts that follow."""
    result = tested.assign(p_holm=_holm_by_metric(tested, tested["p"]))
    # The p-value of a signed-rank test if all pairs differ in one direction.
    smallest = (2.0 ** (1 - result["subjects"])).where(result["p"].notna())
    possible = _holm_by_metric(result, smallest)
    verdicts = [_verdict(entry, p) for entry, p in zip(result.to_dict("records"), possible, strict=True)]
    return result.assign(verdict=verdicts)


def _holm_by_metric(result: pd.DataFrame, p: pd.Series) -> pd.Series:
    """Holm's adjustment of a p-value of each row over the rows of its metric."""
    return p.groupby(result["metric"]).transform(lambda part: pd.Series(holm(part.to_numpy()), part.index))


def _study_pairs(
    table: pd.DataFrame, model: str, reference: str, counts: pd.DataFrame
) -> Iterator[tuple[str, tuple[Resampled, Resampled]]]:
    """STUDY_METRICS of two models on the scans of both."""
    scans = [table[table["model"] == name] for name in (model, reference)]
    common = set(scans[0]["scan"]) & set(scans[1]["scan"])
    scans = [part[part["scan"].isin(common)] for part in scans]
    for metric, row in STUDY_METRICS.items():
        first, second = (resample(part, row, counts) for part in scans)
        if first is not None and second is not None:
            yield metric, (first, second)


def _change(metric: str, means: NDArray[np.float64], draws: NDArray[np.float64], people: int) -> tuple[float, ...]:
    """Difference and gain of a pair `[2]`, each with its interval over resamples `[bootstrap, 2]` of `people`."""
    loss = measure(metric).loss
    ends = _interval(metric, draws[:, 0] - draws[:, 1], people)
    gain_ends = _interval(metric, loss(draws[:, 1]) - loss(draws[:, 0]), people)
    return (means[0] - means[1], *ends, float(loss(means[1]) - loss(means[0])), *gain_ends)


def _tested(
    metric: str, paired: NDArray[np.float64], change: tuple[float, ...], slack: Sequence[float]
) -> tuple[Any, ...]:
    """Columns of `differences` from `difference` on; an empty verdict is left to the test, and `p_holm` is NaN.

    Args:
        metric: of the values.
        paired: values of model and reference `[people, 2]`.
        change: from `_change`.
        slack: mean slack of the values of both `[2]`.
    """
    unknown, people = float("nan"), len(paired)
    if np.isinf(paired).any():
        return (change[0], *[unknown] * (len(change) - 1), "undecided", unknown, unknown, people)
    if metric in UNRANKED or _same(paired):
        return (*change, "unranked" if metric in UNRANKED else "equal", unknown, unknown, people)
    # Also with an ideal value: if two models are alike, their differences are symmetric about zero. Models on opposite
    # sides of it differ, and the interval of the gain decides.
    p = _signed_rank(paired[:, 0] - paired[:, 1])
    # An upper bound may be too high by its slack, and never too low; so may the ends of the interval.
    beyond = change[1] > slack[0] or change[2] < -slack[1]
    return (*change, "undecided" if max(slack) > 0 and not beyond else "", p, unknown, people)


def is_within_slack(entry: Mapping[Hashable, Any]) -> bool:
    """Whether a row of `differences` is undecided only because the slack of the larger bound can explain it."""
    statistics = entry["gain_low"], entry["gain_high"], entry["p_holm"]
    return entry["verdict"] == "undecided" and _decision(*statistics) != "undecided"


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down adjustment of p-values `[T]` (Holm 1979); NaN entries are not tests and stay NaN."""
    # By hand: `multipletests` of statsmodels collects garbage at every call, nine tenths of a group analysis's time.
    adjusted, tests = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def subject_means(table: pd.DataFrame, metrics: Collection[str] = METRICS.keys()) -> pd.DataFrame:
    """Average seeds, then visits: one row per model and subject, columns model, subject and the `metrics` present.

    Raises:
        DataError: the table lacks a key column or has no rows.
    """
    missing = [key for key in KEYS if key not in table]
    if missing or table.empty:
        raise DataError(
            f"the table of scores has {len(table)} rows and lacks {missing or 'nothing'}; "
            f"expected rows with columns {', '.join(KEYS)} and metrics"
        )
    scored = table.assign(subject=[Scan.parse(str(key)).subject for key in table["scan"]])
    present = [name for name in metrics if name in table]
    by_scan = scored.groupby(["model", "subject", "scan"], sort=False)[present].mean()
    return by_scan.groupby(level=["model", "subject"], sort=False).mean().reset_index()


def _by_subject(
    table: pd.DataFrame, metrics: Collection[str]
) -> tuple[list[str], list[str], list[str], NDArray[np.float64]]:
    """Models in table order, subjects, metrics present, and values `[subjects, models, metrics]`, NaN if missing.

    Infinite values are kept: a density of zero is a score, not a missing value.
    """
    means = subject_means(table, metrics)
    models = list(dict.fromkeys(str(model) for model in means["model"]))
    present = [name for name in metrics if name in means]
    subjects = sorted(set(means["subject"]))
    values = np.full((len(subjects), len(models), len(present)), np.nan)
    rows = means["subject"].map({label: row for row, label in enumerate(subjects)}).to_numpy()
    columns = means["model"].map({label: column for column, label in enumerate(models)}).to_numpy()
    values[rows, columns] = means[present].to_numpy(np.float64)
    return models, subjects, present, values


def _resamples(subjects: int, bootstrap: int, seed: int) -> NDArray[np.int64]:
    """How often each resample has each subject, `[bootstrap, subjects]`; the same for all models."""
    return np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1 / subjects), size=bootstrap)


def _resampled(values: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means `[bootstrap, models, metrics]` over the subjects of each resample."""
    finite = np.isfinite(values)
    flat = np.where(finite, values, 0.0).reshape(len(values), -1)
    present = counts @ finite.reshape(len(values), -1).astype(np.float64)
    sums = counts @ flat
    means = np.divide(sums, present, out=np.full_like(sums, np.nan), where=present > 0)
    return means.reshape(len(counts), *values.shape[1:])


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the first axis, NaN left out; infinite if a value is."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    with np.errstate(invalid="ignore"):  # of infinities with both signs
        sums = np.where(known, values, 0.0).sum(axis=0)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def _deviation(values: NDArray[np.float64]) -> float:
    """Standard deviation of known values `[N]`; NaN of fewer than two or of infinite ones."""
    known = values[~np.isnan(values)]
    return float(np.std(known, ddof=1)) if len(known) > 1 and np.isfinite(known).all() else float("nan")


def least_people(metric: str) -> int:
    """Least number of people for an interval of a metric."""
    return MIN_CORRELATED if metric in STUDY_METRICS else MIN_SUBJECTS


def _interval(metric: str, draws: NDArray[np.float64], people: int) -> tuple[float, float]:
    """Ends of the interval of resamples `[bootstrap]` of `people`; NaN for too few."""
    if people < least_people(metric):
        return float("nan"), float("nan")
    low, high = bootstrap_interval(draws, people)
    return float(low), float(high)


def _slacks(table: pd.DataFrame, exact: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """How far scores may be too high, `[subjects, models]`, by column; infinite if that of one seed or visit is.

    Args:
        table: the table of scores.
        exact: zeros, `[subjects, models]`, for columns that the table lacks.
    """
    columns = {metric.slack for metric in METRICS.values()}
    *_, present, values = _by_subject(table, columns)
    known = {name: np.nan_to_num(values[:, :, q], nan=np.inf, posinf=np.inf) for q, name in enumerate(present)}
    return dict.fromkeys(columns, exact) | known


def _same(pairs: NDArray[np.float64]) -> bool:
    """Whether both columns of `pairs` `[people, 2]` are equal for everyone, up to rounding."""
    return bool(np.abs(pairs[:, 0] - pairs[:, 1]).max() <= EQUAL * np.abs(pairs).max())


def bootstrap_interval(
    draws: NDArray[np.float64], people: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the 95 % expanded percentile interval over resamples of people (Hesterberg 2015).

    Plain percentiles of a few people are too narrow: resamples vary by sqrt((n - 1) / n) too little, and their spread
    is that of a normal distribution, not of Student's t. The expanded percentiles make up for both.

    Args:
        draws: score of each resample `[bootstrap, ...]`; NaN entries are left out.
        people: number n of resampled people, of each column `[...]` or of all.

    Returns:
        Lower and upper ends `[...]`; NaN without a finite draw, and for fewer than two people.
    """
    flat = draws.reshape(len(draws), -1)
    counts = np.broadcast_to(people, draws.shape[1:]).ravel()
    known = np.isfinite(flat).any(axis=0) & (counts > 1)
    ends = np.full((2, flat.shape[1]), np.nan)
    for count in np.unique(counts[known]):
        columns = known & (counts == count)
        tail = ndtr(np.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 - CONFIDENCE) / 2))
        ends[:, columns] = np.nanpercentile(flat[:, columns], [100 * tail, 100 * (1 - tail)], axis=0)
    low, high = ends.reshape(2, *draws.shape[1:])
    return low, high


def _signed_rank(paired: Sequence[float] | NDArray[np.float64]) -> float:
    if len(paired) < MIN_SUBJECTS:
        return float("nan")
    from scipy.stats import wilcoxon  # half a second to import

    return float(wilcoxon(paired).pvalue)


def _verdict(entry: Mapping[Hashable, Any], smallest: float) -> str:
    """The verdict on a row of `differences`, which may have one; `smallest` is the least possible `p_holm`."""
    few = entry["subjects"] < least_people(str(entry["metric"])) or smallest >= SIGNIFICANT
    if few and entry["verdict"] in ("", "undecided"):
        return "few"
    return entry["verdict"] or _decision(entry["gain_low"], entry["gain_high"], entry["p_holm"])


def _decision(low: float, high: float, p: float) -> str:
    if not p < SIGNIFICANT:  # NaN without a test
        return "undecided"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"
