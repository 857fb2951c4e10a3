"""Side information of scans from participants.tsv and, where a person has one, the sessions table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dualflow.data.tables import all_numbers, numbers, read_table
from dualflow.errors import DataError
from dualflow.layout import Scan


def side_values(root: Path, scans: Sequence[Scan], columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, DataError]]:
    """The side columns of `scans`, and the scans (by key) whose cells cannot be used, with the reason.

    A column is numeric when more than half of its known cells are numbers and participants.json gives it no `Levels`;
    numeric codes that do have levels become text (`group-1`), for their distance means nothing. A known cell of the
    sessions table stands before the participant's. A person without a row is unknown throughout.

    Returns:
        One row per scan in the order of `scans`: float64 or text columns, NaN or None where unknown.

    Raises:
        DataError: participants.tsv is missing or a column is in no table; the message names the columns there are.
    """
    if not columns:
        return pd.DataFrame(index=range(len(scans))), {}
    path = root / "participants.tsv"
    if not path.is_file():
        raise DataError(f"{path} is missing, and study.side asks for {', '.join(columns)}; add it or empty study.side")
    people = _rows(path, "participant_id", "sub-")
    subjects = sorted({scan.subject for scan in scans if scan.session})
    tables = {subject: root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv" for subject in subjects}
    visits = {subject: _rows(table, "session_id", "ses-") for subject, table in tables.items() if table.is_file()}
    _require_columns(path, columns, [people, *visits.values()])

    refused: dict[str, DataError] = {}
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

    coded = _columns_with_levels(root / "participants.json")
    typed = {}
    for name in columns:
        typed[name], bad = _typed(text[name], name, coded=name in coded)
        for position in bad:
            refused[scans[position].key] = DataError(
                f"side column '{name}' is '{text[name][position]}', expected a number as for the others; "
                "correct it or write n/a"
            )
    return pd.DataFrame(typed), refused


def known_columns(root: Path) -> list[str]:
    """The columns that participants.tsv has; none where there is no such table."""
    path = root / "participants.tsv"
    return [str(name) for name in read_table(path).columns] if path.is_file() else []


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


def _cells(table: pd.DataFrame, label: str | None, name: str) -> Mapping[str, str | None]:
    rows = table.loc[table.index == label]
    if len(rows) > 1:
        raise DataError(f"{name} has {len(rows)} rows for '{label}'; keep one")
    return {str(column): rows[column].iloc[0] for column in rows.columns} if len(rows) else {}


def _require_columns(path: Path, columns: Sequence[str], tables: Sequence[pd.DataFrame]) -> None:
    there = sorted({str(column) for table in tables for column in table.columns})
    missing = [f"'{name}'" for name in columns if name not in there]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} (found: {', '.join(there) or 'none'}); "
            "add the column or take it out of study.side"
        )


def _columns_with_levels(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not readable JSON ({error}); mend it or remove it") from error
    if not isinstance(described, dict):
        raise DataError(f"{path}: expected an object with one entry per column; mend it or remove it")
    return {name for name, entry in described.items() if isinstance(entry, dict) and "Levels" in entry}
