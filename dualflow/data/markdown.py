"""Markdown tables whose columns also line up on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

UNKNOWN = "n/a"


@dataclass(frozen=True)
class Column:
    """One column of the text.

    Attributes:
        heading: what stands above.
        names: columns of the frame that share it, in order.
        digits: decimals.
        interval: whether the interval is shown behind the value.
        scale: what a value is multiplied with.
    """

    heading: str
    names: Sequence[str]
    digits: int = 3
    interval: bool = False
    scale: float = 1.0


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up on a terminal: names to the left, numbers to the right.

    Args:
        rows: the head, then the lines; the first cell of each is a name.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])] for cells in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def table(frame: pd.DataFrame, columns: Sequence[Column], label: str = "model", heading: str = "flow") -> str:
    """One Markdown table of the columns that any row of `frame` has a value in; empty if there is none.

    Args:
        frame: a row per line of the table.
        columns: what is shown of it.
        label: the frame's column that names a row.
        heading: what stands above the names.
    """
    values = frame.reindex(columns=[name for column in columns for name in column.names])
    shown = [column for column in columns if values[list(column.names)].notna().to_numpy().any()]
    if not shown:
        return ""
    lines = [[heading, *(column.heading for column in shown)]]
    lines += [[str(row[label]), *(_cell(row, column) for column in shown)] for _, row in frame.iterrows()]
    return markdown_table(lines)


def _cell(row: pd.Series, column: Column) -> str:
    text = " / ".join(_number(row.get(name), column) for name in column.names)
    low, high = (row.get(f"{column.names[0]}_{end}") for end in ("low", "high"))
    if not column.interval or pd.isna(low) or pd.isna(high):
        return text
    return f"{text} ({_number(low, column)} to {_number(high, column)})"


def _number(value: Any, column: Column) -> str:
    # z: a value that rounds to zero has no sign.
    return UNKNOWN if pd.isna(value) else f"{column.scale * float(value):z,.{column.digits}f}"
