"""Side information of scans from participants.tsv and, where a person has one, the sessions table."""

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
    """The side columns of `scans`, and the scans (by key) whose cells cannot be used, with the reason.

    A known cell of the sessions table stands before the participant's. A person without a row is unknown throughout.
    Columns are typed by `typed_values`, where participants.json tells of `Levels`.

    Returns:
        One row per scan in the order of `scans`: float64 or text columns, NaN or None where unknown.

    Raises:
        DataError: participants.tsv is missing or empty, or a column is in no table; the message names the columns
            there are.
    """
    if not columns:
        return pd.DataFrame(index=range(len(scans))), {}
    path, asked = root / "participants.tsv", ", ".join(columns)
    if not path.is_file():
        raise DataError(f"{path} is missing, and the study asks for {asked}; add it or empty study.side")
    people = _rows(path, "participant_id", "sub-")
    visits, refused = _visits(root, scans)
    require_columns(path, columns, [people, *visits.values()])
    if not len(people):
        raise DataError(f"{path} has no rows, and the study asks for {asked}; fill it or empty study.side")

    cells = []
    for scan in scans:
        try:
            person = _cells(people, scan.subject, path.name)
            visit = _cells(visits[scan.subject], scan.session, "its sessions table") if scan.subject in visits else {}
        except DataError as error:
            refused[scan.key] = error
            person = visit = {}
        cells.append([visit.get(name) or person.get(name) for name in columns])
    text = pd.DataFrame(cells, columns=list(columns), dtype=object)
    values, wrong = typed_values(text, scans, columns_with_levels(root / "participants.json"))
    return values, refused | wrong


def typed_values(
    text: pd.DataFrame, scans: Sequence[Scan], coded: Collection[str]
) -> tuple[pd.DataFrame, dict[str, DataError]]:
    """Columns of text, one row per scan, as numbers where they are numbers; and the scans whose cell is none.

    A column is numeric when more than half of its known cells are numbers and it is not among `coded`; numeric codes
    that are become text (`group-1`), for their distance means nothing.
    """
    typed, refused = {}, {}
    for name in text.columns:
        typed[name], bad = _typed(text[name], name, coded=name in coded)
        for position in bad:
            refused[scans[position].key] = DataError(
                f"side column '{name}' is '{text[name][position]}', expected a number as for the others; "
                "correct it or write n/a"
            )
    return pd.DataFrame(typed, index=text.index), refused


def listed_people(root: Path) -> list[str]:
    """Labels of the people in participants.tsv; none where there is no such table.

    Raises:
        DataError: the table cannot be used.
    """
    path = root / "participants.tsv"
    return [str(label) for label in _rows(path, "participant_id", "sub-").index if label] if path.is_file() else []


def known_columns(root: Path) -> list[str]:
    """The columns of participants.tsv and the sessions tables; none where the first is not there or has no rows."""
    path = root / "participants.tsv"
    table = read_table(path) if path.is_file() else pd.DataFrame()
    if not len(table):
        return []
    columns = list(table.columns)
    for visits in sorted(root.glob("sub-*/*_sessions.tsv")):
        with suppress(DataError):  # the scans it is about will be set aside
            columns.extend(read_table(visits).columns)
    return list(dict.fromkeys(columns))


def _typed(column: pd.Series, name: str, *, coded: bool) -> tuple[pd.Series, list[int]]:
    """The column as numbers or as text, and the positions whose cell is no number in a numeric column."""
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
        raise DataError(f"{path} has no column '{key}' (found: {', '.join(table.columns)}); BIDS puts it first")
    labels = [(label or "").removeprefix(prefix) for label in table[key]]
    return table.drop(columns=key).set_axis(labels, axis="index")


def _visits(root: Path, scans: Sequence[Scan]) -> tuple[dict[str, pd.DataFrame], dict[str, DataError]]:
    """The sessions tables by subject, and the scans of those people whose table cannot be read."""
    visits, refused = {}, {}
    for subject in sorted({scan.subject for scan in scans if scan.session}):
        path = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
        try:
            if path.is_file():
                visits[subject] = _rows(path, "session_id", "ses-")
        except DataError as error:
            refused.update({scan.key: error for scan in scans if scan.subject == subject})
    return visits, refused


def _cells(table: pd.DataFrame, label: str | None, name: str) -> Mapping[str, str | None]:
    rows = table.loc[table.index == label]
    if len(rows) > 1:
        raise DataError(f"{name} has {len(rows)} rows for '{label}'; keep one")
    return {str(column): rows[column].iloc[0] for column in rows.columns} if len(rows) else {}


def require_columns(path: Path, columns: Sequence[str], tables: Sequence[pd.DataFrame]) -> None:
    """Refuse side columns that none of `tables` has.

    Raises:
        DataError: with the columns there are; `path` is the table to add to.
    """
    there = sorted({str(column) for table in tables for column in table.columns})
    missing = [f"'{name}'" for name in columns if name not in there]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} (found: {', '.join(there) or 'none'}); "
            "add the column or take it out of study.side and split.stratify"
        )


def columns_with_levels(path: Path) -> set[str]:
    """The columns that the JSON file of a table explains by `Levels`; none where there is no such file.

    Raises:
        DataError: the file is not JSON as BIDS has it.
    """
    if not path.is_file():
        return set()
    return {name for name, entry in read_object(path).items() if isinstance(entry, dict) and "Levels" in entry}
