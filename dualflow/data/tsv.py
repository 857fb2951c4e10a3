"""Tab-separated tables as in BIDS: text columns, `n/a` for missing cells, numbers only if a whole column is numeric.

BIDS tables have no quoting: a quotation mark is an ordinary character, and no cell holds a tab or line end.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dualflow.data.levels import number_level
from dualflow.errors import DataError

MAX_BYTES = 16 << 20
MAX_COLUMNS, MAX_CELLS = 5_000, 2_000_000
MISSING = ("n/a", "N/A", "NA", "NaN", "nan", "")
"""Cells that mean an unknown value; BIDS specifies the first, studies use them all."""
NO_LABEL = ("n/a", "")
"""Cells that mean no label: `NA` and `nan` are labels of a subject, a session or a model."""
LABELS = ("model", "scan", "subject", "session", "region")
"""Columns of tables of results that hold labels."""
_REMEDY = "save it as UTF-8 text with tab-separated columns"
_SEPARATORS = re.compile(r"[\t\r\n]+")


def read_table(path: Path, labels: Sequence[str] = ()) -> pd.DataFrame:
    """Read a TSV file as text columns (object dtype, missing cells None); columns without a name are dropped.

    Args:
        path: the table.
        labels: columns in which only NO_LABEL is missing; in the others all of MISSING is.

    Raises:
        DataError: the file is no UTF-8 tab-separated table, a row has too few or too many cells, or two columns have
            the same name.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(
                f"{path}: has {size / 2**20:.0f} MiB, expected a table of at most {MAX_BYTES >> 20} MiB; "
                "keep the columns and rows that the study needs"
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a table ({error}); {_REMEDY}") from error
    _check_size(text, path)
    lines = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip(" ")]
    if not lines:
        raise DataError(f"{path}: is not a table (it is empty); {_REMEDY}")
    names = _column_names(lines.pop(0)[1], path)
    _check_rows(lines, len(names), path)
    columns = zip(*(cells for _, cells in lines), strict=True) if lines else ([] for _ in names)
    cells = {
        name: _cells(column, NO_LABEL if name in labels else MISSING)
        for name, column in zip(names, columns, strict=True)
        if name
    }
    return pd.DataFrame(cells, dtype=object)


def read_typed_table(path: Path) -> pd.DataFrame:
    """Read a table of results that `table_text` wrote, of any size, with numeric columns as numbers.

    The columns LABELS stay text: 001 is no number, and NA no missing label.
    """
    types = dict.fromkeys(LABELS, str)
    return pd.read_csv(
        path, sep="\t", quoting=csv.QUOTE_NONE, dtype=types, keep_default_na=False, na_values=list(NO_LABEL)
    )


def _column_names(header: Sequence[str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    if quoted := next((name for name in names if len(name) > 1 and name[0] == name[-1] == '"'), None):
        raise DataError(
            f"{path}: column {quoted} has quotation marks, which BIDS tables do not have; write the table without "
            "them (in R, quote=FALSE)"
        )
    if repeated := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise DataError(
            f"{path}: has {names.count(repeated[0])} columns '{repeated[0]}', expected different names; "
            "rename or remove all but one"
        )
    return names


def _check_rows(lines: Sequence[tuple[int, Sequence[str]]], width: int, path: Path) -> None:
    """Check that every row has as many cells as the header, because a missing one may shift the others."""
    for number, cells in lines:
        if len(cells) > width:
            raise DataError(
                f"{path}: line {number} has {len(cells)} cells, more cells than its header ({width}); give every "
                "column a name, or remove surplus tabs"
            )
        if len(cells) < width:
            raise DataError(
                f"{path}: line {number} has {len(cells)} cells, expected {width} as in the header; write n/a for "
                "unknown values"
            )


def _check_size(text: str, path: Path) -> None:
    """Check the size of a table, because a cell needs far more memory than space on disk."""
    header, _, rows = text.partition("\n")
    columns = header.count("\t") + 1
    cells = columns + rows.count("\t") + rows.count("\n")
    if columns > MAX_COLUMNS or cells > MAX_CELLS:
        raise DataError(
            f"{path}: has {columns} columns and {cells} cells, expected a table of at most {MAX_COLUMNS} and "
            f"{MAX_CELLS}; keep the columns and rows that the study needs"
        )


def table_text(table: pd.DataFrame, significant: int | None = None) -> str:
    """The TSV text of a table, with `n/a` for missing cells; equal tables give equal text.

    Tabs and line ends in cells and names become spaces, because TSV cannot hold them.

    Args:
        table: the table.
        significant: significant digits of its numbers; by default all.
    """
    clean = table.rename(columns=_one_line)
    for name in clean.columns:
        if not pd.api.types.is_numeric_dtype(clean[name]):
            clean[name] = pd.Series([_one_line(cell) for cell in clean[name]], clean.index, dtype=object)
    digits = None if significant is None else f"%.{significant}g"
    return clean.to_csv(
        sep="\t", na_rep="n/a", float_format=digits, index=False, lineterminator="\n", quoting=csv.QUOTE_NONE
    )


def summarise_names(names: Sequence[str], limit: int = 12) -> str:
    """The names on one line: the first `limit`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def numbers(column: pd.Series) -> pd.Series:
    """The column as float64; NaN for missing cells and cells that are not finite numbers."""
    values = pd.to_numeric(column, errors="coerce").astype(float)
    return values.where(np.isfinite(values))


def all_numbers(column: pd.Series) -> bool:
    """Whether every known cell is a finite number; true if no cell is known."""
    return bool((numbers(column).notna() | column.isna()).all())


def cell_text(cell: object, unknown: str = MISSING[0]) -> str:
    """A number in its shortest form, or a level, as text; `unknown` for None and NaN."""
    if cell is None or cell != cell:
        return unknown
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return number_level(cell)
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def _cells(column: Sequence[str], missing: Sequence[str]) -> list[str | None]:
    return [None if (cell := text.strip()) in missing else cell for text in column]


def _one_line(cell: object) -> object:
    """The cell on one line; None for an empty text."""
    return _SEPARATORS.sub(" ", cell) or None if isinstance(cell, str) else cell
