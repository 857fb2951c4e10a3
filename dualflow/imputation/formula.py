"""Formulas such as `suvr ~ diagnosis + age * sex`, restricted to columns of a table: no formula runs code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.data.levels import number_level
from dualflow.data.tsv import all_numbers, numbers
from dualflow.errors import ConfigError, DataError

OUTCOME = "suvr"
"""Left-hand side of every analysis; a formula may leave it out."""
INTERCEPT = "Intercept"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m|[⧛⧚]")
_PRODUCTS, _POWERS = ("*", ":", "/", "in"), ("**", "^")
"""Operators of formulas. A power of a sum has its interactions; one of a single term is the term itself."""


@dataclass(frozen=True)
class Formula:
    """The right-hand side of a linear model.

    Attributes:
        text: such as `diagnosis + age * sex`; the intercept is implied.
        references: reference level of categorical columns, by column; by default the first in alphabetical order.
    """

    text: str
    references: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, references: Mapping[str, str] | None = None) -> Formula:
        """Read `suvr ~ TERMS`, `~ TERMS` or `TERMS`.

        Raises:
            ConfigError: it does not parse, has another outcome, no term, or terms that are not columns.
        """
        outcome, tilde, terms = text.rpartition("~")
        if tilde and outcome.strip() not in ("", OUTCOME):
            raise ConfigError(f"formula '{text}' models '{outcome.strip()}'; write '{OUTCOME} ~ {terms.strip()}'")
        formula = cls(terms.strip(), dict(references or {}))
        if unused := sorted(formula.references.keys() - set(formula.variables)):
            raise ConfigError(
                f"reference {unused[0]}={formula.references[unused[0]]}: '{text}' has no term {unused[0]}"
            )
        return formula

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns that the formula names, sorted.

        Raises:
            ConfigError: the formula does not parse, or has terms that are not columns.
        """
        # formulaic takes seconds to import.
        from formulaic import Formula as Parsed
        from formulaic.errors import FormulaicError

        try:
            terms = list(Parsed(f"~ {self.text}"))
            factors = {factor.expr: _method(factor) for term in terms for factor in term.factors}
            operations = list(_operations(f"~ {self.text}"))
        except AttributeError:
            raise ConfigError(f"formula '{self.text}' has several parts; write it as 'diagnosis + age'") from None
        except (FormulaicError, SyntaxError, ValueError) as error:
            first = _COLOURS.sub("", str(error)).strip().splitlines()[0]
            raise ConfigError(
                f"formula '{self.text}' does not parse ({first}); write it as 'diagnosis + age'"
            ) from None
        if scaled := [term for term in terms if len(term.factors) > 1 and "literal" in map(_method, term.factors)]:
            raise ConfigError(
                f"formula '{self.text}': {scaled[0]} scales a column, which scales its coefficient too; leave the "
                "number out, or add a column in the unit that you want"
            )
        if not any(term == "1" for term in terms):
            raise ConfigError(f"formula '{self.text}': the intercept is implied; leave out 0 and -1")
        if code := sorted(name for name, method in factors.items() if method == "python"):
            raise ConfigError(
                f"formula '{self.text}': {code[0]} is not a column; add a column to the table and name it, "
                "and choose the reference level of a category by --reference COLUMN=LEVEL"
            )
        for symbol, left, right in operations:
            if symbol == "-" and (absent := sorted(map(str, right - left))):
                raise ConfigError(
                    f"formula '{self.text}': there is no {absent[0]} to subtract; leave it out. A column whose name "
                    "has a minus is written in backticks, such as `age-onset`"
                )
            if symbol in _POWERS and len(left) == 1:
                power = "".join(map(str, (*left, symbol, *right)))
                raise ConfigError(
                    f"formula '{self.text}': {power} is the column itself in a formula; add a column of its powers "
                    "to the table and name it"
                )
            if symbol in _PRODUCTS and (twice := sorted(_columns_of(left) & _columns_of(right))):
                name = quoted(twice[0])
                raise ConfigError(
                    f"formula '{self.text}': a product of {name} with itself is {name} alone in a formula; add a "
                    "column of its square to the table and name it"
                )
        return tuple(sorted(name for name, method in factors.items() if method == "lookup"))

    def design(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the design matrix `[N, K]` with a named column per coefficient; rows with unknown values are NaN.

        Raises:
            ConfigError: a column is missing, a reference is not a level of a complete row, or a category has one level.
        """
        from formulaic import model_matrix

        missing = [name for name in self.variables if name not in table]
        if missing:
            raise ConfigError(
                f"formula '{self.text}': no column {missing[0]} in the table; choose from: {', '.join(map(str, table))}"
            )
        if not self.variables:
            return pd.DataFrame({INTERCEPT: 1.0}, index=table.index)
        complete = self._complete_rows(table)
        matrix = pd.DataFrame(model_matrix(self.text, complete, context={}, na_action="raise"))
        matrix.columns = [_plain(name) for name in matrix.columns]
        return matrix.astype(float).reindex(table.index)

    def reference_levels(self, table: pd.DataFrame) -> dict[str, str]:
        """Return the level that the others of a category are compared with in `design(table)`, by column."""
        categories = self._complete_rows(table).select_dtypes("category") if self.variables else pd.DataFrame()
        return {str(name): str(values.cat.categories[0]) for name, values in categories.items()}

    def is_number(self, column: pd.Series) -> bool:
        """Whether a column is a number in the design; one with a reference level is a category."""
        return all_numbers(column) and str(column.name) not in self.references

    def without_gaps(self, table: pd.DataFrame) -> pd.DataFrame:
        """Fill unknown values with the mean of a numeric column, and the most frequent level of a category."""
        filled = table.copy()
        for name in self.variables:
            numeric = self.is_number(table[name])
            values = numbers(table[name]) if numeric else table[name]
            if values.notna().any():
                filled[name] = values.fillna(values.mean() if numeric else values.mode().iloc[0])
        return filled

    def _complete_rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The variables where all are known; categories have the levels that are left, the reference first.

        Raises:
            ConfigError: no row is complete, a variable does not vary, or a reference is not a level of a complete row.
        """
        complete = pd.DataFrame({name: self._column(table[name]) for name in self.variables}).dropna()
        if complete.empty:
            raise ConfigError(f"formula '{self.text}': no scan has known values of {', '.join(self.variables)}")
        for name in self.variables:
            if complete[name].nunique() < 2:
                raise ConfigError(
                    f"formula '{self.text}': {name} is {complete[name].iloc[0]} in every scan; leave the term out"
                )
            if isinstance(complete[name].dtype, pd.CategoricalDtype):
                complete[name] = self._used_levels(complete[name])
        return complete

    def _column(self, values: pd.Series) -> pd.Series:
        if self.is_number(values):
            return numbers(values)
        reference = self.references.get(str(values.name))
        values = values.map(_level, na_action="ignore")
        levels = sorted(set(values.dropna()))
        if reference is not None and reference not in levels:
            raise ConfigError(f"reference {values.name}={reference}; choose from: {', '.join(levels)}")
        first = [reference] if reference is not None else []
        return pd.Series(
            pd.Categorical(values, [*first, *(level for level in levels if level not in first)]), values.index
        )

    def _used_levels(self, values: pd.Series) -> pd.Series:
        """A category without the levels of incomplete rows alone, whose coefficients would be constant 0."""
        used, reference = values.cat.remove_unused_categories(), self.references.get(str(values.name))
        if reference is not None and reference not in used.cat.categories:
            raise ConfigError(
                f"reference {values.name}={reference}: no scan with it has known values of "
                f"{', '.join(self.variables)}; choose from: {', '.join(used.cat.categories)}"
            )
        return used


def _operations(text: str) -> Iterator[tuple[str, set[Any], set[Any]]]:
    """Each difference, product and power in a formula: its operator, and the terms on its left and right."""
    from formulaic.parser import DefaultFormulaParser
    from formulaic.parser.types import ASTNode

    nodes: list[Any] = [DefaultFormulaParser().get_ast(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ASTNode):
            nodes += node.args
            if node.operator.symbol in ("-", *_PRODUCTS, *_POWERS) and len(node.args) == 2:
                left, right = (set(part.to_terms()) for part in node.args)
                yield node.operator.symbol, left, right


def _columns_of(terms: set[Any]) -> set[str]:
    return {factor.expr for term in terms for factor in term.factors}


def _level(value: object) -> str:
    """Name of a level; a number without decimals has none in its name either."""
    return number_level(value) if isinstance(value, float) else str(value)


def references_of(text: str, references: Mapping[str, str]) -> dict[str, str]:
    """Return the reference levels of the columns that a formula names."""
    variables = Formula.parse(text).variables
    return {name: level for name, level in references.items() if name in variables}


def quoted(column: str) -> str:
    """Return a column's name as a term: one that is no word, such as `apoe-e4`, in backticks."""
    return column if re.fullmatch(r"[A-Za-z_]\w*", column) else f"`{column}`"


def _plain(name: str) -> str:
    """Name of a coefficient: `diagnosis[T.AD]` -> `diagnosis=AD`."""
    return re.sub(r"\[T\.([^\]]*)\]", r"=\1", str(name))


def require_full_rank(design: pd.DataFrame, what: str) -> None:
    """Check that every coefficient of a complete design `[N, K]` can be estimated.

    Raises:
        DataError: columns are constant or collinear, or there are too few rows.
    """
    values = design.to_numpy()
    if len(values) <= values.shape[1]:
        raise DataError(f"{what}: {len(values)} scans for {values.shape[1]} coefficients; use fewer terms")
    for name, column in zip(design, values.T, strict=True):
        if name != INTERCEPT and np.ptp(column) == 0:
            raise DataError(
                f"{what}: {name} is the same in all {len(values)} scans, so its effect cannot be estimated; leave the "
                "term out, merge the group with another, or add scans"
            )
    scaled = values / np.linalg.norm(values, axis=0)
    rank, kept = 0, list[str]()
    for position, name in enumerate(design):
        if (now := int(np.linalg.matrix_rank(scaled[:, : position + 1]))) == rank:
            raise DataError(f"{what}: {name} is a combination of {', '.join(kept)}; leave one of them out")
        rank = now
        kept.append(str(name))


def _method(factor: Any) -> str:
    """How formulaic evaluates a factor: `lookup` of a column, `literal` or `python`."""
    return str(factor.eval_method.value)


def lies_in(design: NDArray[np.float64], space: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each column of a design `[N, K]` is a linear combination of the columns of another `[N, L]`."""
    fitted = space @ np.linalg.lstsq(space, design, rcond=None)[0]
    size, spread = np.linalg.norm(design, axis=0), np.linalg.norm(design - design.mean(axis=0), axis=0)
    # Of a column such as a year, how it varies counts, not how large it is.
    scale = np.where(spread > 1e-9 * size, spread, size)
    return np.asarray(np.linalg.norm(design - fitted, axis=0) <= 1e-6 * np.maximum(scale, 1e-12))
