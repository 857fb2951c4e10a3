"""Tab-separated tables as in BIDS: text columns, `n/a` for missing cells, numbers only if a whole column is numeric."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from dualflow.errors import DataError

MAX_BYTES = 16 << 20
MAX_COLUMNS, MAX_CELLS = 5_000, 2_000_000
MISSING = ("n/a", "N/A", "NA", "NaN", "nan", "")
"""Cells that mean an unknown value; BIDS specifies the first, studies use them all."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV file as text columns (object dtype, missing cells None).

    Raises:
        DataError: the file cannot be read as a UTF-8 tab-separated table.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(
                f"{path}: has {size / 2**20:.0f} MiB, expected a table of at most {MAX_BYTES >> 20} MiB; "
                "keep the columns and rows that the study needs"
            )
        text = path.read_text(encoding="utf-8-sig")
        _check_size(text, path)
        table = pd.read_csv(StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except ValueError as error:  # including UnicodeDecodeError and pandas' parser errors
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: is not a table ({reason}); save it as UTF-8 text with tab-separated columns"
        ) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus cells for row names
        raise DataError(f"{path}: its rows have more cells than its header; give every column a name")
    return pd.DataFrame({str(name).strip(): _cells(column) for name, column in table.items()}, dtype=object)


def _check_size(text: str, path: Path) -> None:
    """Check the size of a table, because pandas needs far more memory for a cell than the cell needs on disk."""
    header, _, rows = text.partition("\n")
    columns = header.count("\t") + 1
    cells = columns + rows.count("\t") + rows.count("\n")
    if columns > MAX_COLUMNS or cells > MAX_CELLS:
        raise DataError(
            f"{path}: has {columns} columns and {cells} cells, expected a table of at most {MAX_COLUMNS} and "
            f"{MAX_CELLS}; keep the columns and rows that the study needs"
        )


def table_text(table: pd.DataFrame) -> str:
    """The TSV text of a table, with `n/a` for missing cells; equal tables give equal text."""
    return table.to_csv(sep="\t", na_rep="n/a", index=False, lineterminator="\n")


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


def _cells(column: pd.Series) -> list[str | None]:
    return [None if cell in MISSING else cell for cell in column.str.strip()]
