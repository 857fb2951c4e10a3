"""Side information of a model: its columns in words, values given by name, and unknown values of the scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd

from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.data.tsv import MISSING, numbers
from dualflow.errors import ConfigError

Cell = float | str | None


def describe_columns(encoder: SideEncoder) -> str:
    """The side columns with what training saw of them, such as `age (a number; 71 ± 8 in training), sex (F, M)`."""
    return ", ".join(f"{column.name} ({_domain(column)})" for column in encoder.columns) or "none"


def side_cells(encoder: SideEncoder, values: Mapping[str, object], options: Sequence[str] = ()) -> dict[str, Cell]:
    """Check side information given by name.

    Case, and `-` for `_`, do not matter in names. `n/a` and None mean an unknown value.

    Args:
        encoder: side encoder of the model.
        values: name -> value.
        options: names of the options of the command, which a misspelt name may mean.

    Returns:
        Column name -> number, level or None.

    Raises:
        ConfigError: a name is no side column of the model, or a value does not fit its column.
    """
    columns = {_plain(column.name): column for column in encoder.columns}
    columns |= {column.name: column for column in encoder.columns}
    cells: dict[str, Cell] = {}
    for name, value in values.items():
        column = columns.get(name) or columns.get(_plain(name))
        if column is None:
            raise ConfigError(
                f"no option or side column '{name}'{_suggestion(name, [*columns, *options])}; the model's side columns "
                f"are: {describe_columns(encoder)}"
            )
        if column.name in cells:
            raise ConfigError(f"--{column.name} is given twice; give one value")
        cells[column.name] = _cell(column, value)
    return cells


def side_notes(encoder: SideEncoder, rows: pd.DataFrame, absent: str) -> list[str]:
    """Lines on the side information that is unknown, and on levels that training did not see.

    Args:
        encoder: side encoder of the model.
        rows: one row per scan; a column that it lacks is unknown for all scans.
        absent: why a column may be lacking.
    """
    unknown, unseen = [], []
    for column in encoder.columns:
        if column.name not in rows:
            unknown.append(f"{column.name} ({absent})")
            continue
        cells = rows[column.name]
        missing = int((cells.isna() if isinstance(column, Categorical) else numbers(cells).isna()).sum())
        if missing:
            unknown.append(f"{column.name} ({missing} of {len(rows)} scans)")
        if isinstance(column, Categorical):
            counts = cells[cells.notna() & ~cells.isin(column.levels)].astype(str).value_counts()
            unseen += [f"{column.name} {level} ({count} of {len(rows)} scans)" for level, count in counts.items()]
    notes = [f"side information unknown: {', '.join(unknown)}"] if unknown else []
    return notes + ([f"not seen in training, so unknown: {', '.join(unseen)}"] if unseen else [])


def _domain(column: Continuous | Categorical) -> str:
    if isinstance(column, Categorical):
        return ", ".join(column.levels)
    if column.mean is None:
        return "a number; unknown in training"
    return f"a number; {column.mean:.3g} ± {column.sd:.2g} in training"


def _cell(column: Continuous | Categorical, value: object) -> Cell:
    text = "" if value is None else str(value).strip()
    if text in MISSING:
        return None
    if isinstance(column, Continuous):
        number = float(pd.to_numeric(text, errors="coerce"))
        if not np.isfinite(number):
            raise ConfigError(f"--{column.name} is '{text}', expected {_domain(column)}, or n/a")
        return number
    level = column.level(text)
    if level is not None:
        return level
    raise ConfigError(f"--{column.name} is '{text}', expected one of {_domain(column)}, or n/a")


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")


def _suggestion(name: str, names: Sequence[str]) -> str:
    close = get_close_matches(_plain(name), [_plain(choice) for choice in names], n=1)
    return f" (did you mean {close[0].replace('_', '-')}?)" if close else ""
