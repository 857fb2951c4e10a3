"""Strata of people: what each split should have its share of."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dualflow.data.tsv import all_numbers, numbers

QUANTILES = 4
"""Groups of equal size that the values of a numeric column are put into."""


def strata_table(pairs: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The level of every person in each of `columns` at the person's first scan: text, None where unknown.

    Returns:
        One row per person, in the order of `pairs`, indexed by subject label.
    """
    first = pairs.drop_duplicates("subject").set_index("subject")
    levels = {name: pd.Series(_levels(first[name]), index=first.index, dtype=object) for name in columns}
    return pd.DataFrame(levels, index=first.index)


def first_categorical(pairs: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """The first of `columns` that is not numeric: what is stratified by where nothing is asked for."""
    return tuple([name for name in columns if not all_numbers(pairs[name])][:1])


def strata_of(table: pd.DataFrame) -> dict[str, str]:
    """Subject label -> one text for all levels of the person, '' for those unknown."""
    joined = ["\t".join("" if pd.isna(level) else level for level in levels) for levels in table.to_numpy()]
    return dict(zip(map(str, table.index), joined, strict=True))


def _levels(column: pd.Series) -> list[str | None]:
    """Levels of one column; many different numbers become ranges."""
    if not all_numbers(column):
        return [None if pd.isna(value) else str(value) for value in column]
    values = numbers(column)
    if values.nunique() <= QUANTILES:
        return [None if pd.isna(value) else f"{value:g}" for value in values]
    ranges, edges = pd.qcut(values, QUANTILES, labels=False, retbins=True, duplicates="drop")
    return [None if pd.isna(place) else f"{edges[int(place)]:g} to {edges[int(place) + 1]:g}" for place in ranges]
