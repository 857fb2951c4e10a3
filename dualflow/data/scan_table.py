"""A study as a plain table, `samples.tsv`: one row per scan with the paths of its files and its side information.

Paths are relative to the table's folder, or absolute; either way a file must lie in that folder or below, links
followed, as in a BIDS dataset, so that a table that came from elsewhere reaches nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from dualflow.config import StudyConfig
from dualflow.data.bids_files import Files, Refused, require_inside
from dualflow.data.participants import columns_with_levels, require_columns, typed_values
from dualflow.data.tsv import read_table
from dualflow.errors import DataError, PairingError
from dualflow.layout import Scan


def find_samples(path: Path, study: StudyConfig) -> tuple[Files, Refused]:
    """The files of a study's modalities by scan, and the rows that cannot be used with the reason.

    The columns of paths are named by modality; `source` and `target` stand for the study's own. A table of scans to
    convert needs no column of targets.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    table = _read(path)
    found = {name: _path_column(table, path, name, study) for name in study.modalities}
    columns = {name: column for name, column in found.items() if column}
    files: Files = {}
    refused: Refused = {}
    for row in table.to_dict("records"):
        try:
            scan = Scan(row["subject"], row["session"])
            if scan in files:
                raise PairingError(f"{path.name} has more than one row for it; keep one, or tell them apart by session")
            files[scan] = {name: Path(row[column]) for name, column in columns.items() if row[column] is not None}
            files[scan] = {name: _relative(path.parent, file) for name, file in files[scan].items()}
        except DataError as error:
            refused[_key(row)] = error
    return files, refused


def sample_values(path: Path, scans: Sequence[Scan], columns: Sequence[str]) -> tuple[pd.DataFrame, Refused]:
    """The side columns of `scans` that the table at `path` has, as `participants.side_values` gives them.

    A JSON file of the table's name may tell of `Levels`, as participants.json does.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    table = _read(path)
    require_columns(path, columns, [table.drop(columns=["subject", "session"])])
    rows = table.assign(key=[_key(row) for row in table.to_dict("records")]).drop_duplicates("key").set_index("key")
    text = rows.loc[[scan.key for scan in scans], list(columns)].reset_index(drop=True)
    return typed_values(text, scans, columns_with_levels(path.with_suffix(".json")))


def sampled_people(path: Path) -> list[str]:
    """Labels of the people whom the table has a row for."""
    return [str(label) for label in _read(path)["subject"]]


def _read(path: Path) -> pd.DataFrame:
    """The table with labels as BIDS has them, without `sub-` and `ses-`, and a column `session` in any case."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; set study.samples to a table of scans")
    table = read_table(path)
    if "subject" not in table or table.empty:
        found = ", ".join(table.columns) if "subject" not in table else "no rows"
        raise DataError(f"{path}: expected a column 'subject' and a row per scan (found: {found}); fill it")
    if table["subject"].isna().any():
        row = int(table["subject"].isna().to_numpy().argmax()) + 1
        raise DataError(f"{path}: row {row} below the header has no subject; fill it in")
    sessions = table.get("session", pd.Series([None] * len(table), dtype=object))
    labels = {
        "subject": [label.removeprefix("sub-") for label in table["subject"]],
        "session": [label and label.removeprefix("ses-") for label in sessions],
    }
    return table.assign(**{name: pd.Series(column, dtype=object) for name, column in labels.items()})


def _path_column(table: pd.DataFrame, path: Path, name: str, study: StudyConfig) -> str | None:
    names = [name, *(role for role, own in (("source", study.source), ("target", study.target)) if own == name)]
    there = [column for column in names if column in table]
    if not there and name == study.target:
        return None
    if len(there) != 1:
        expected = " or ".join(f"'{column}'" for column in names)
        found = ", ".join(str(column) for column in table)
        raise DataError(f"{path}: expected one column {expected} with the paths of {name} (found: {found}); mend it")
    return there[0]


def _relative(root: Path, file: Path) -> Path:
    """`file` as a path below `root`, without the way there if it is absolute."""
    require_inside(root, file)
    base = next((base for base in (root.absolute(), root.resolve()) if file.is_relative_to(base)), None)
    return file.relative_to(base) if base else file


def _key(row: Mapping[Hashable, str | None]) -> str:
    """What `Scan.key` is, also where the labels make no scan."""
    return f"sub-{row['subject']}" + (f"_ses-{row['session']}" if row["session"] else "")
