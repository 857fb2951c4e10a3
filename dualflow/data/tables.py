"""Tab-separated tables as BIDS writes them: text in, `n/a` for what is missing, numbers only where all is numbers."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from dualflow.errors import DataError

MISSING = ("n/a", "N/A", "NA", "NaN", "nan", "")
"""Cells that say nothing; BIDS asks for the first, studies use them all."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV file as text columns (object dtype, missing cells None).

    Raises:
        DataError: the file cannot be read as a UTF-8 tab-separated table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = pd.read_csv(StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it a readable file") from error
    except ValueError as error:  # covers UnicodeDecodeError and pandas' parser errors
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: is not a table ({reason}); save it as UTF-8 text with tab-separated columns"
        ) from error
    return pd.DataFrame({str(name).strip(): _cells(column) for name, column in table.items()}, dtype=object)


def table_text(table: pd.DataFrame) -> str:
    """The TSV text of a table, `n/a` for missing cells; equal tables give equal text."""
    return table.to_csv(sep="\t", na_rep="n/a", index=False, lineterminator="\n")


def numbers(column: pd.Series) -> pd.Series:
    """The column as float64; what is missing or no finite number is NaN."""
    values = pd.to_numeric(column, errors="coerce").astype(float)
    return values.where(np.isfinite(values))


def all_numbers(column: pd.Series) -> bool:
    """Whether every known cell is a finite number (true for a column with nothing known)."""
    return bool((numbers(column).notna() | column.isna()).all())


def _cells(column: pd.Series) -> list[str | None]:
    return [None if cell in MISSING else cell for cell in column.str.strip()]
