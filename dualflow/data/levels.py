"""Names of levels that are numbers: programs write whole numbers as 1 or, in a column with unknown values, as 1.0."""

from __future__ import annotations


def number_level(value: float) -> str:
    """A number as the name of a level, without decimals if it has none."""
    return str(int(value)) if value.is_integer() else str(value)


def code_level(column: str, code: float) -> str:
    """The level that a numeric code of a column means, such as `group-1`."""
    return f"{column}-{number_level(code)}"
