"""Tables of people: who is in each split, errors by group, and the people with the largest errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10

import pandas as pd

from dualflow.data.bids_files import natural_order
from dualflow.data.index import side_columns, split_people
from dualflow.data.split import SPLITS
from dualflow.data.strata import first_scans, strata_table
from dualflow.data.tsv import all_numbers, cell_text, numbers
from dualflow.evaluation.statistics import MIN_SUBJECTS, subject_means, summarise
from dualflow.evaluation.study_metrics import measure
from dualflow.layout import Scan
from dualflow.modalities import Modality
from dualflow.report.tables import UNKNOWN, Table, metric_cell

SPLIT_NAMES = {"train": "Training", "validation": "Validation", "test": "Test", "convert": "Without a target"}
GROUP_METRICS = ("mae", "region_mae", "region_bias", "voxel_crps", "region_coverage_80")
WORST = 5
"""Number of people listed with their numbers."""
MAX_LEVELS = 12
"""Number of groups of a column that are shown, the largest first."""
GROUPED = f"numbers are cut into quarters, and a column of more than {MAX_LEVELS} groups has its {MAX_LEVELS} largest"
"""What captions say of the groups."""


def demographics(pairs: pd.DataFrame) -> Table:
    """People of each split: numbers, and their side information at their first scan of the split."""
    scans = pairs.groupby("split")["scan"].size()
    splits = {name: split_people(pairs, name) for name in (*SPLITS, "convert") if name in scans}
    columns = {SPLIT_NAMES[name]: people for name, people in splits.items()} | {"All": first_scans(pairs)}
    described = pd.concat(columns.values())
    rows = [
        {"Variable": "subjects"} | {name: str(len(people)) for name, people in columns.items()},
        {"Variable": "scans"}
        | {SPLIT_NAMES[name]: str(int(scans[name])) for name in splits}
        | {"All": str(len(pairs))},
    ]
    for name in side_columns(pairs):
        if all_numbers(described[name]):
            spreads = {key: _spread(part[name]) for key, part in columns.items()}
            rows.append({"Variable": f"{name}, mean ± SD (range)"} | spreads)
        else:
            levels = sorted({str(level) for level in described[name].dropna()}, key=natural_order)
            rows += [
                {"Variable": f"{name} {level}"} | {key: _share(part[name] == level) for key, part in columns.items()}
                for level in levels
            ]
        if described[name].isna().any():
            rows.append(
                {"Variable": f"{name} unknown"} | {key: _share(part[name].isna()) for key, part in columns.items()}
            )
    caption = (
        "Subjects of each split, with their side information at their first scan of the split. A subject counts as "
        "without a target only if none of its scans has one. Percentages are of the column."
    )
    return Table(caption, pd.DataFrame(rows))


def group_scores(
    scores: pd.DataFrame, pairs: pd.DataFrame, splits: pd.DataFrame, *, bootstrap: int, seed: int
) -> pd.DataFrame:
    """Scores by group of the test people.

    Args:
        scores: rows of all models, with columns `model`, `seed`, `scan` and metrics.
        pairs: the test scans with their side columns.
        splits: table of the splits, whose further columns are the strata of the index, such as the site.
        bootstrap: resamples of an interval.
        seed: seed of the resamples.

    Returns:
        One row per group, model and metric: columns `column`, `group`, and those of `summarise`. Numeric columns are
        cut into quarters of the test people.
    """
    levels = strata_table(pairs, side_columns(pairs))
    strata = splits.set_index("subject").drop(columns=["fold", "split"], errors="ignore").reindex(levels.index)
    levels = levels.join(strata[[name for name in strata.columns if name not in levels.columns]])
    person = scores["scan"].map(lambda key: Scan.parse(str(key)).subject)
    tables = []
    for column in levels.columns:
        known = levels[column].dropna()
        sizes = known.value_counts()
        for group in sorted(sizes.index[:MAX_LEVELS], key=natural_order):
            rows = scores[person.isin(known.index[known == group])]
            if len(rows):
                summary = summarise(rows, bootstrap=bootstrap, seed=seed, metrics=GROUP_METRICS)
                summary = summary[summary["metric"].isin(GROUP_METRICS)]
                tables.append(summary.assign(column=column, group=group))
    empty = pd.DataFrame(columns=["column", "group", "model", "metric", "mean", "low", "high", "subjects"])
    return pd.concat(tables, ignore_index=True) if tables else empty


def group_table(groups: pd.DataFrame, row: Modality, model: str) -> Table:
    """The groups of `group_scores`, one row each, with the scores of one model."""
    groups = groups[groups["model"] == model]
    metrics = [name for name in GROUP_METRICS if name in set(groups["metric"])]
    rows = []
    for (column, group), part in groups.groupby(["column", "group"], sort=False):
        cells = {str(entry["metric"]): entry for entry in part.to_dict("records")}
        rows.append(
            {"Group": f"{column} {group}", "Subjects": str(int(part["subjects"].max()))}
            | {
                measure(name).heading(row): metric_cell(cells[name], name) if name in cells else UNKNOWN
                for name in metrics
            }
        )
    large = (groups["subjects"] >= MIN_SUBJECTS).any()
    intervals = " Brackets are 95 % bootstrap intervals over subjects." if large else ""
    caption = (
        f"Scores of {model} by group of the test subjects; {GROUPED}. A value between two quarters belongs to the "
        f"lower one.{intervals} Groups of fewer than {MIN_SUBJECTS} have no interval. No test compares "
        "the groups: of many groups, the largest difference is large by chance."
    )
    return Table(caption, pd.DataFrame(rows))


def model_group_table(groups: pd.DataFrame, row: Modality) -> Table:
    """The mean absolute error of every model, one row each, in the groups of `group_scores`."""
    errors = groups[groups["metric"] == "mae"]
    models = list(dict.fromkeys(errors["model"]))
    columns, best = dict[str, list[str]](), set[tuple[int, int]]()
    for number, ((column, group), part) in enumerate(errors.groupby(["column", "group"], sort=False), 1):
        cells = {str(entry["model"]): f"{entry['mean']:.{measure('mae').digits}f}" for entry in part.to_dict("records")}
        if part["subjects"].max() >= MIN_SUBJECTS:
            least = min(cells.values(), key=float)
            best |= {(index, number) for index, model in enumerate(models) if cells.get(model) == least}
        columns[f"{column} {group}"] = [cells.get(model, UNKNOWN) for model in models]
    caption = (
        f"{measure('mae').heading(row)} of every model by group of the test subjects, the least of a group of "
        f"{MIN_SUBJECTS} or more in bold; {GROUPED}. A model that is best on average may not be so in a small group."
    )
    return Table(caption, pd.DataFrame({"Model": models, **columns}), frozenset(best))


def worst_people(
    scores: pd.DataFrame,
    pairs: pd.DataFrame,
    quality: pd.DataFrame,
    verdicts: Mapping[str, str],
    row: Modality,
    model: str,
) -> Table:
    """The people with the largest MAE, with their numbers, side information, quality flags and verdicts.

    Args:
        scores: rows of the model.
        pairs: the test scans with their side columns.
        quality: the quality table, with columns `scan` and `flags`.
        verdicts: verdict of the conversion by scan.
        row: the target.
        model: name of the model.
    """
    means = subject_means(scores, GROUP_METRICS).sort_values(["mae", "subject"], ascending=[False, True]).head(WORST)
    first = first_scans(pairs).set_index("subject")
    flags = quality.set_index("scan")["flags"].dropna()
    rows = []
    for person in means.to_dict("records"):
        side = first.loc[person["subject"]]
        scan = str(side["scan"])
        rows.append(
            {"Subject": f"sub-{person['subject']}"}
            | {measure(name).heading(row): _number(person[name], name) for name in GROUP_METRICS if name in person}
            | {str(name): cell_text(side[name], UNKNOWN) for name in side_columns(pairs)}
            | {"Flags": str(flags.get(scan, "none")), "Verdict": verdicts.get(scan, UNKNOWN)}
        )
    caption = (
        f"Test subjects with the largest mean absolute error of {model}, the largest first, {WORST} at most. Flags "
        "are those of the quality control of their first scan, whose picture qc.html shows; the verdict is that of its "
        "conversion, whose reason conversion.tsv gives."
    )
    return Table(caption, pd.DataFrame(rows))


def _spread(column: pd.Series) -> str:
    values = numbers(column).dropna()
    if values.empty:
        return UNKNOWN
    low, mean, high, sd = values.min(), values.mean(), values.max(), values.std(ddof=1)
    if not sd > 0:
        return f"{mean:g} ({low:g} to {high:g})"
    # All numbers have the decimals that show two digits of the standard deviation.
    digits = max(0, 1 - floor(log10(sd)))
    return f"{mean:.{digits}f} ± {sd:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _share(inside: pd.Series) -> str:
    return f"{int(inside.sum())} ({100 * inside.mean():.0f} %)" if len(inside) else UNKNOWN


def _number(value: float, metric: str) -> str:
    return UNKNOWN if pd.isna(value) else f"{value:z.{measure(metric).digits}f}"


def shown_columns(pairs: pd.DataFrame, names: Sequence[str], limit: int) -> Sequence[str]:
    """The columns `names` whose effects are drawn: known of some person, and not constant."""
    columns = [name for name in names if pairs[name].nunique() > 1]
    return [name for name in columns if all_numbers(pairs[name]) or pairs[name].nunique() <= MAX_LEVELS][:limit]
