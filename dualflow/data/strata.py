"""Strata of subjects by their first scan, by which splits are balanced."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dualflow.data.bids_files import natural_order
from dualflow.data.levels import number_level
from dualflow.data.tsv import all_numbers, numbers

QUANTILES = 4
"""Number of groups of equal size for the values of a numeric column."""


def first_scans(pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `pairs` with the first scan of each subject, in their order: visit M6 precedes M12."""
    first = pairs.sort_values("scan", key=lambda scans: scans.map(natural_order)).drop_duplicates("subject")
    return pairs.loc[pairs.index.isin(first.index)]


def strata_table(pairs: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The level of every subject in each of `columns` at the first scan: text, None if unknown.

    Returns:
        One row per subject, in the order of `pairs`, indexed by subject label.
    """
    first = first_scans(pairs).set_index("subject")
    levels = {name: pd.Series(_levels(first[name]), index=first.index, dtype=object) for name in columns}
    return pd.DataFrame(levels, index=first.index)


def first_categorical(pairs: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """The first of `columns` that is not numeric, the default for stratification; empty if all are numeric."""
    return tuple([name for name in columns if not all_numbers(pairs[name])][:1])


def strata_of(table: pd.DataFrame) -> dict[str, str]:
    """Subject label -> stratum: all levels of the subject as one text, '' for unknown levels."""
    joined = ["\t".join("" if pd.isna(level) else level for level in levels) for levels in table.to_numpy()]
    return dict(zip(map(str, table.index), joined, strict=True))


def _levels(column: pd.Series) -> list[str | None]:
    """Levels of one column; a column of many different numbers is cut into ranges."""
    if not all_numbers(column):
        return [None if pd.isna(value) else str(value) for value in column]
    values = numbers(column)
    if values.nunique() <= QUANTILES:
        return [None if pd.isna(value) else number_level(value) for value in values]
    ranges, edges = pd.qcut(values, QUANTILES, labels=False, retbins=True, duplicates="drop")
    names = _distinct_texts(edges.tolist())
    return [None if pd.isna(index) else f"{names[int(index)]} to {names[int(index) + 1]}" for index in ranges]


def _distinct_texts(values: Sequence[float]) -> list[str]:
    """The shortest texts of different numbers that are all different, such as those of dates."""
    texts = ([f"{value:.{digits}g}" for value in values] for digits in range(6, 18))
    return next(names for names in texts if len(set(names)) == len(values))
