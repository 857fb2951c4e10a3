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
        heading: heading of the column.
        names: columns of the frame that share it, in order.
        digits: decimals, or significant digits.
        interval: whether the confidence interval follows the value.
        scale: factor that values are multiplied by.
        probability: whether the values are p-values.
        significant: whether `digits` are significant digits, for effects of any unit.
    """

    heading: str
    names: Sequence[str]
    digits: int = 3
    interval: bool = False
    scale: float = 1.0
    probability: bool = False
    significant: bool = False


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table aligned for a terminal: names to the left, numbers to the right.

    Args:
        rows: the header, then the rows; the first cell of each is a name.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])] for cells in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def table(frame: pd.DataFrame, columns: Sequence[Column], label: str = "model", heading: str = "flow") -> str:
    """A Markdown table of the rows and columns of `frame` that have a value; empty if none has.

    Args:
        frame: a row per row of the table.
        columns: the columns to show.
        label: the frame's column of row names.
        heading: heading of the row names.
    """
    values = frame.reindex(columns=[name for column in columns for name in column.names])
    shown = [column for column in columns if values[list(column.names)].notna().to_numpy().any()]
    if not shown:
        return ""
    # A row without any value says nothing, such as that of a model without a likelihood.
    frame = frame[values[[name for column in shown for name in column.names]].notna().any(axis=1)]
    lines = [[heading, *(column.heading for column in shown)]]
    lines += [[str(row[label]), *(_cell(row, column) for column in shown)] for _, row in frame.iterrows()]
    return markdown_table(lines)


def p_value(value: float, digits: int) -> str:
    """A p-value with `digits` decimals; a smaller one as below the least that they can show."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if value < least else f"{value:.{digits}f}"


def p_statement(value: float) -> str:
    """A p-value in a sentence, such as `p = 0.012` or `p < 0.001`."""
    text = p_value(value, 3)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _cell(row: pd.Series, column: Column) -> str:
    text = " / ".join(_number(row.get(name), column) for name in column.names)
    low, high = (row.get(f"{column.names[0]}_{end}") for end in ("low", "high"))
    if not column.interval or pd.isna(low) or pd.isna(high):
        return text
    return f"{text} ({_number(low, column)} to {_number(high, column)})"


def _number(value: Any, column: Column) -> str:
    if pd.isna(value):
        return UNKNOWN
    if column.probability:
        return p_value(float(value), column.digits)
    if column.significant:
        return f"{column.scale * float(value):.{column.digits}g}"
    # z: no minus sign before a value that rounds to zero.
    return f"{column.scale * float(value):z,.{column.digits}f}"
