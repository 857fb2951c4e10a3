"""Side information of scans from participants.tsv and the subjects' sessions tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dualflow.data.tsv import all_numbers, numbers, read_table
from dualflow.errors import DataError
from dualflow.imaging.sidecar import read_object
from dualflow.layout import Scan


def side_values(root: Path, scans: Sequence[Scan], columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, DataError]]:
    """The side columns of `scans`, and the scans (by key) whose cells are invalid with the reason.

    A known cell of the sessions table precedes that of participants.tsv. All values of a subject without a row are
    unknown. `typed_values` types the columns; participants.json lists categorical ones by their `Levels`.

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
    require_columns(path, columns, [participants, *sessions.values()])
    if not len(participants):
        raise DataError(f"{path} has no rows, expected {names} of each subject; fill it or empty study.side")

    cells = []
    for scan in scans:
        try:
            subject = _cells(participants, scan.subject, path.name)
            table = sessions.get(scan.subject)
            session = {} if table is None else _cells(table, scan.session, "its sessions table")
        except DataError as error:
            excluded[scan.key] = error
            subject = session = {}
        cells.append([session.get(name) or subject.get(name) for name in columns])
    text = pd.DataFrame(cells, columns=list(columns), dtype=object)
    values, invalid = typed_values(text, scans, columns_with_levels(root / "participants.json"))
    return values, excluded | invalid


def typed_values(
    text: pd.DataFrame, scans: Sequence[Scan], coded: Collection[str]
) -> tuple[pd.DataFrame, dict[str, DataError]]:
    """Text columns, one row per scan, with numeric columns as float64; and the scans with an invalid number.

    A column is numeric if more than half of its known cells are numbers and it is not in `coded`. Numeric codes in
    `coded` become text (`group-1`) because their distances mean nothing.
    """
    typed, excluded = {}, {}
    for name in text.columns:
        typed[name], invalid = _typed(text[name], name, coded=name in coded)
        for position in invalid:
            excluded[scans[position].key] = DataError(
                f"side column '{name}' is '{text[name][position]}', expected a number as in other rows; "
                "correct it or write n/a"
            )
    return pd.DataFrame(typed, index=text.index), excluded


def listed_subjects(root: Path) -> list[str]:
    """Labels of the subjects in participants.tsv; none if the table is missing.

    Raises:
        DataError: the table cannot be read.
    """
    path = root / "participants.tsv"
    return [str(label) for label in _rows(path, "participant_id", "sub-").index if label] if path.is_file() else []


def known_columns(root: Path) -> list[str]:
    """The columns of participants.tsv and the sessions tables; none if participants.tsv is missing or empty."""
    path = root / "participants.tsv"
    table = read_table(path) if path.is_file() else pd.DataFrame()
    if not len(table):
        return []
    columns = list(table.columns)
    for sessions in sorted(root.glob("sub-*/*_sessions.tsv")):
        with suppress(DataError):  # the index excludes its scans
            columns.extend(read_table(sessions).columns)
    return list(dict.fromkeys(columns))


def _typed(column: pd.Series, name: str, *, coded: bool) -> tuple[pd.Series, list[int]]:
    """The column as numbers or text, and the positions of invalid cells in a numeric column."""
    if coded:
        return (column.map(lambda code: f"{name}-{code}", na_action="ignore") if all_numbers(column) else column), []
    values = numbers(column)
    if 2 * values.notna().sum() <= column.notna().sum() and column.notna().any():
        return column, []
    return values, [int(position) for position in column.index[column.notna() & values.isna()]]


def _rows(path: Path, key: str, prefix: str) -> pd.DataFrame:
    """A table indexed by the BIDS label in its column `key`."""
    table = read_table(path)
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


def _cells(table: pd.DataFrame, label: str | None, name: str) -> Mapping[str, str | None]:
    rows = table.loc[table.index == label]
    if len(rows) > 1:
        raise DataError(f"{name} has {len(rows)} rows for '{label}'; keep one")
    return {str(column): rows[column].iloc[0] for column in rows.columns} if len(rows) else {}


def require_columns(path: Path, columns: Sequence[str], tables: Sequence[pd.DataFrame]) -> None:
    """Check that each side column is in one of `tables`.

    Raises:
        DataError: a column is in none of them; the message names `path` and the available columns.
    """
    available = sorted({str(column) for table in tables for column in table.columns})
    missing = [f"'{name}'" for name in columns if name not in available]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} (found: {', '.join(available) or 'none'}); "
            "add the column or remove it from study.side and split.stratify"
        )


def columns_with_levels(path: Path) -> set[str]:
    """The columns that a table's JSON sidecar describes by `Levels`; none if the sidecar is missing.

    Raises:
        DataError: the sidecar is not a JSON object.
    """
    if not path.is_file():
        return set()
    return {name for name, entry in read_object(path).items() if isinstance(entry, dict) and "Levels" in entry}
