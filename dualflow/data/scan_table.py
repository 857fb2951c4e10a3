"""A study as a table of scans, `samples.tsv`: one row per scan with the paths of its files and side information.

Paths are absolute or relative to a root: `study.bids`, or else the table's folder. Every file must lie in it after
links are resolved, so a table from elsewhere cannot reach other files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from dualflow.config import StudyConfig
from dualflow.data.bids_files import Exclusions, Files, require_inside
from dualflow.data.participants import UNDECLARED, Declaration, declared_columns, require_columns, typed_values
from dualflow.data.tsv import read_table
from dualflow.errors import DataError, PairingError
from dualflow.layout import Scan


def find_samples(path: Path, root: Path, study: StudyConfig, modalities: Sequence[str]) -> tuple[Files, Exclusions]:
    """The files of some of a study's modalities by scan, and the invalid rows with their reason.

    Columns of paths have the names of modalities, or `source` and `target`. A table of scans to convert needs no
    target column.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    table = _read(path)
    path_columns = {name: _path_column(table, path, name, study) for name in modalities}
    columns = {name: column for name, column in path_columns.items() if column}
    files: Files = {}
    excluded: Exclusions = {}
    for row in table.to_dict("records"):
        try:
            scan = Scan(row["subject"], row["session"])
            if scan in files:
                raise PairingError(f"{path.name} has more than one row for it; keep one, or give each a session")
            files[scan] = {name: Path(row[column]) for name, column in columns.items() if row[column] is not None}
            files[scan] = {name: _relative(root, file) for name, file in files[scan].items()}
        except DataError as error:
            excluded[_key(row)] = error
    return files, excluded


def sample_values(
    path: Path, scans: Sequence[Scan], columns: Sequence[str], known: Mapping[str, Declaration] = UNDECLARED
) -> tuple[pd.DataFrame, Exclusions]:
    """The side columns of `scans` in the table at `path`, as from `participants.side_values`.

    The table's JSON sidecar may declare `Levels` and `Units` of columns, as participants.json does.

    Raises:
        DataError: the table cannot be read, or lacks a column.
    """
    table = _read(path)
    require_columns(path, columns, [str(name) for name in table.columns.drop(["subject", "session"])])
    rows = table.set_axis([_key(row) for row in table.to_dict("records")])
    rows = rows[~rows.index.duplicated()]
    text = rows.loc[[scan.key for scan in scans], list(columns)].reset_index(drop=True)
    declared = {**declared_columns(path.with_suffix(".json")), **known}
    return typed_values(text, scans, declared)


def table_subjects(path: Path) -> list[str]:
    """Labels of the subjects that have a row in the table."""
    return [str(label) for label in _read(path)["subject"]]


def _read(path: Path) -> pd.DataFrame:
    """The table with labels without `sub-` and `ses-`, and with a column `session`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected a table of scans; check the path")
    table = read_table(path, labels=("subject",))
    if "subject" not in table or table.empty:
        content = ", ".join(table.columns) if "subject" not in table else "no rows"
        raise DataError(f"{path}: expected a column 'subject' and a row per scan (found: {content}); add them")
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
    """The column with the paths of modality `name`; None for a target in a table of scans to convert."""
    roles = {"source": study.source, "target": study.target}
    names = [name, *(role for role, modality in roles.items() if modality == name)]
    matches = [column for column in names if column in table]
    if not matches and name == study.target:
        return None
    if len(matches) != 1:
        expected = " or ".join(f"'{column}'" for column in names)
        columns = ", ".join(str(column) for column in table)
        raise DataError(
            f"{path}: expected one column {expected} with the paths of {name} (found: {columns}); rename the column"
        )
    return matches[0]


def _relative(root: Path, file: Path) -> Path:
    """The path of `file` relative to `root`, also if it leads there by another link."""
    require_inside(root, file)
    if not file.is_absolute():
        return file
    paths = [(file, root.absolute()), (file, root.resolve()), (file.parent.resolve() / file.name, root.resolve())]
    return next((path.relative_to(base) for path, base in paths if path.is_relative_to(base)), file)


def _key(row: Mapping[Hashable, str | None]) -> str:
    """The key of a row's scan, also if its labels are invalid."""
    return f"sub-{row['subject']}" + (f"_ses-{row['session']}" if row["session"] else "")
