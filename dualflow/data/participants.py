"""Side information of scans from participants.tsv and the subjects' sessions tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dualflow.data.levels import code_level
from dualflow.data.tsv import MISSING, numbers, read_table, summarise_names
from dualflow.errors import DataError
from dualflow.imaging.sidecar import read_object
from dualflow.layout import Scan

LevelOf = Callable[[str], str | None]
"""The level that a cell of a column means, None if a model does not know it."""
Declaration = Literal["Levels", "Units"] | LevelOf
"""What a column holds: categories or numbers, by the field of a JSON sidecar, or the categories that a model knows."""
UNDECLARED: Mapping[str, Declaration] = {}
IDENTIFIERS = ("participant_id", "session_id")
"""Columns of participants.tsv and of sessions tables that tell the rows."""
_NEARLY_A_NUMBER = re.compile(
    r"[+-]?\d+(?:[.,]\d+)?\s*(?:|y|yo|yrs?|years?|mo|months?|d|days?|kg|lbs?|g|cm|mm|m)\.?", re.IGNORECASE
)
"""A number with a decimal comma or a unit, such as `45,5`, `45 years` or `45y.`"""
_BOUND = re.compile(r"(?:[<>]=?|[≤≥])\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)\s*\+")
"""A bound in place of a number, such as the capped ages `89+` and `>89` of shared datasets."""


def side_values(
    root: Path, scans: Sequence[Scan], columns: Sequence[str], known: Mapping[str, Declaration] = UNDECLARED
) -> tuple[pd.DataFrame, dict[str, DataError]]:
    """The side columns of `scans`, and the scans (by key) whose cells are invalid with the reason.

    A column of a subject's sessions table replaces that of participants.tsv, which may be of another visit: without a
    row or a known cell of the session it is unknown. All values of a subject without a row are unknown too.
    `typed_values` types the columns; participants.json declares categories by their `Levels` and numbers by their
    `Units`. Of the `known` columns the type is given.

    Returns:
        One row per scan in the order of `scans`: float64 or text columns, NaN or None if unknown.

    Raises:
        DataError: participants.tsv is missing or empty, or a column is in no table.
    """
    if not columns:
        return pd.DataFrame(index=range(len(scans))), {}
    path, names = root / "participants.tsv", ", ".join(columns)
    if not path.is_file():
        raise DataError(f"{path} is missing, expected columns {names}; add it or empty study.side")
    participants = _rows(path, "participant_id", "sub-")
    sessions, excluded = _session_tables(root, scans)
    available = {str(name) for table in (participants, *sessions.values()) for name in table.columns}
    if not available.issuperset(columns):  # a column may be known of subjects without such scans alone
        available |= set(known_columns(root))
    require_columns(path, columns, available)
    if not len(participants):
        raise DataError(f"{path} has no rows, expected {names} of each subject; fill it or empty study.side")

    cells, subjects = [], _by_label(participants)
    for scan in scans:
        try:
            subject = _cells(subjects, scan.subject, path.name)
            table = sessions.get(scan.subject)
            session = {} if table is None else _cells(_by_label(table), scan.session, "its sessions table")
            if table is not None and scan.session:
                subject = {name: cell for name, cell in subject.items() if name not in table.columns}
        except DataError as error:
            excluded[scan.key] = error
            subject = session = {}
        cells.append([session.get(name) or subject.get(name) for name in columns])
    text = pd.DataFrame(cells, columns=list(columns), dtype=object)
    declared = {**declared_columns(root / "participants.json"), **known}
    values, invalid = typed_values(text, scans, declared)
    return values, excluded | invalid


def typed_values(
    text: pd.DataFrame, scans: Sequence[Scan], declared: Mapping[str, Declaration]
) -> tuple[pd.DataFrame, dict[str, DataError]]:
    """Text columns, one row per scan, with numeric columns as float64; and the scans with an invalid number.

    A column without a declaration is numeric if more than half of its known cells are numbers, with or without a unit
    or decimal comma. Levels that are numbers become text (`group-1` for 1 and 1.0) because their distances
    mean nothing; each does so for itself, so that any subset of the rows, such as the training scans, has the same
    levels.
    """
    typed, excluded = {}, {}
    for name in text.columns:
        typed[name], invalid = _typed(text[name], name, declared.get(name))
        for position in invalid:
            cell = text[name][position]
            bound = _BOUND.fullmatch(cell)
            remedy = (
                f"write {bound[1] or bound[2]}, or n/a"
                if bound
                else "write a plain number such as 45.5, or n/a; categories need Levels in the JSON file of the table"
            )
            excluded[scans[position].key] = DataError(
                f"side column '{name}' is '{cell}', expected a number as in other rows; {remedy}"
            )
    return pd.DataFrame(typed, index=text.index), excluded


def guessed_types(values: pd.DataFrame, sidecar: Path) -> dict[str, str]:
    """A line on each side column whose type is a guess, because the table's JSON sidecar does not declare it.

    Args:
        values: side columns as `typed_values` returns them.
        sidecar: path of the sidecar, which may not exist.
    """
    declared = declared_columns(sidecar)
    lines = {}
    for name, column in values.items():
        if name in declared or not column.notna().any():
            continue
        if pd.api.types.is_numeric_dtype(column):
            guess, remedy = "numbers", "its Units there, or its Levels if the numbers are codes"
        else:
            levels = summarise_names(sorted(set(column.dropna())), limit=4)
            guess, remedy = f"categories ({levels})", "its Levels there, or its Units if it holds numbers"
        lines[str(name)] = (
            f"side column '{name}' is taken as {guess}: {sidecar.name} does not declare its type; add {remedy}"
        )
    return lines


def listed_subjects(root: Path) -> list[str]:
    """Labels of the subjects in participants.tsv; none if the table is missing.

    Raises:
        DataError: the table cannot be read.
    """
    path = root / "participants.tsv"
    return [str(label) for label in _rows(path, "participant_id", "sub-").index if label] if path.is_file() else []


def known_columns(root: Path) -> list[str]:
    """The side columns in participants.tsv and sessions tables; none if participants.tsv is missing or empty."""
    path = root / "participants.tsv"
    table = read_table(path) if path.is_file() else pd.DataFrame()
    if not len(table):
        return []
    columns = list(table.columns)
    for sessions in sorted(root.glob("sub-*/*_sessions.tsv")):
        with suppress(DataError):  # the index excludes its scans
            columns.extend(read_table(sessions).columns)
    return [name for name in dict.fromkeys(columns) if name not in IDENTIFIERS]


def _typed(column: pd.Series, name: str, declaration: Declaration | None) -> tuple[pd.Series, list[int]]:
    """The column as numbers or text, and the positions of invalid cells in a numeric column."""
    if callable(declaration):
        cells = [cell and (declaration(cell) or cell) for cell in column]
        return pd.Series(cells, index=column.index, dtype=object), []
    values, known = numbers(column), column.notna()
    numeric = values.notna() | column.map(lambda cell: bool(cell and _NEARLY_A_NUMBER.fullmatch(cell)))
    if declaration == "Levels" or (declaration is None and known.any() and 2 * numeric.sum() <= known.sum()):
        return column.mask(values.notna(), values.map(partial(code_level, name))), []
    return values, [int(position) for position in column.index[known & values.isna()]]


def _rows(path: Path, key: str, prefix: str) -> pd.DataFrame:
    """A table indexed by the BIDS label in its column `key`."""
    table = read_table(path, labels=(key,))
    if key not in table.columns:
        raise DataError(f"{path} has no column '{key}' (found: {', '.join(table.columns)}); add it as the first column")
    labels = [(label or "").removeprefix(prefix) for label in table[key]]
    return table.drop(columns=key).set_axis(labels, axis="index")


def _session_tables(root: Path, scans: Sequence[Scan]) -> tuple[dict[str, pd.DataFrame], dict[str, DataError]]:
    """The sessions tables by subject, and the scans of subjects whose table cannot be read."""
    tables, excluded = {}, {}
    for subject in sorted({scan.subject for scan in scans if scan.session}):
        path = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
        try:
            if path.is_file():
                tables[subject] = _rows(path, "session_id", "ses-")
        except DataError as error:
            excluded.update({scan.key: error for scan in scans if scan.subject == subject})
    return tables, excluded


Rows = Mapping[str, Sequence[Mapping[Any, str | None]]]
"""The rows of a table by label."""


def _by_label(table: pd.DataFrame) -> Rows:
    rows: dict[str, list[Mapping[Any, str | None]]] = defaultdict(list)
    for label, row in zip(table.index, table.to_dict("records"), strict=True):
        rows[label].append(row)
    return rows


def _cells(table: Rows, label: str | None, name: str) -> Mapping[Any, str | None]:
    rows = table.get(label or "", [])
    if len(rows) > 1:
        raise DataError(f"{name} has {len(rows)} rows for '{label}'; keep one")
    return rows[0] if rows else {}


def require_columns(path: Path, columns: Sequence[str], available: Collection[str]) -> None:
    """Check that each side column is available.

    Raises:
        DataError: a column is not; the message names `path` and the available columns.
    """
    missing = [f"'{name}'" for name in columns if name not in available]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} (found: {', '.join(sorted(available)) or 'none'}); "
            "add the column or remove it from study.side and split.stratify"
        )


def declared_columns(path: Path) -> dict[str, Declaration]:
    """The columns that a table's JSON sidecar describes by `Levels` or `Units`; none if the sidecar is missing.

    Raises:
        DataError: the sidecar is not a JSON object.
    """
    if not path.is_file():
        return {}
    fields: tuple[Declaration, ...] = ("Units", "Levels")  # the last one counts
    entries = {name: entry for name, entry in read_object(path).items() if isinstance(entry, dict)}
    # Tools write templates with empty fields.
    return {
        name: field
        for field in fields
        for name, entry in entries.items()
        if entry.get(field) and entry[field] not in MISSING
    }
