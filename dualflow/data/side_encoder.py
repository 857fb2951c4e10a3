"""Side information as numbers: standardised columns and one-hot levels, with NaN for unknown values."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, Field, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from dualflow.data.levels import code_level
from dualflow.data.tsv import numbers
from dualflow.errors import CheckpointError, DataError

_log = logging.getLogger(__name__)
Label = Annotated[str, StringConstraints(max_length=1000)]


@dataclass(frozen=True)
class Continuous:
    """A numeric column, standardised by the training scans.

    Attributes:
        name: the column.
        mean: training mean; None if no training scan has a value, in which case the column is unknown for all scans.
        sd: training standard deviation; 0 if the column is constant, in which case every known value becomes 0.
        low: smallest training value; None if no training scan has a value.
        high: largest training value.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: Label
    mean: FiniteFloat | None
    sd: Annotated[FiniteFloat, Field(ge=0)]
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    @property
    def names(self) -> list[str]:
        """Name of the only feature, which is that of the column."""
        return [self.name]

    def encode(self, column: pd.Series) -> np.ndarray:
        """Features [N, 1] of a column."""
        if self.mean is None:  # nor is it known whether the column holds numbers or levels
            return np.full((len(column), 1), np.nan)
        values = numbers(column).to_numpy(dtype=float)
        if (invalid := column.notna().to_numpy() & np.isnan(values)).any():
            raise DataError(
                f"side column '{self.name}' is '{column[invalid].iloc[0]}', expected a number as in training; "
                "correct it or write n/a"
            )
        return ((values - self.mean) / self.sd if self.sd else (values - self.mean) * 0.0)[:, None]


@dataclass(frozen=True)
class Categorical:
    """A text column, with one feature per level of the training scans.

    Attributes:
        name: the column.
        levels: the training levels, sorted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: Label
    levels: tuple[Label, ...]

    @property
    def names(self) -> list[str]:
        """Names of the features, such as `sex=F`."""
        return [f"{self.name}={level}" for level in self.levels]

    def level(self, text: str) -> str | None:
        """The level that a cell means, None if training did not see it.

        A dataset whose JSON sidecar lists the levels of numeric codes has levels such as `group-1`.
        """
        number = numbers(pd.Series([text], dtype=object)).iloc[0]
        code = "" if np.isnan(number) else code_level(self.name, number)
        return next((level for level in (text, f"{self.name}-{text}", code) if level in self.levels), None)

    def encode(self, column: pd.Series) -> np.ndarray:
        """Features [N, levels] of a column; a level without training scans is unknown."""
        values = column.to_numpy(dtype=object)
        if unseen := sorted({str(value) for value in column.dropna() if value not in self.levels}):
            _log.warning("side column '%s': %s not seen in training, treated as unknown", self.name, ", ".join(unseen))
        features = np.array([[float(value == level) for level in self.levels] for value in values])
        features = features.reshape(len(values), len(self.levels))
        features[features.sum(axis=1) == 0] = np.nan
        return features


@dataclass(frozen=True)
class SideEncoder:
    """Encodes side columns of a table as features; fitted on training scans and saved with the model.

    Attributes:
        columns: one encoder per side column, in feature order.
    """

    columns: tuple[Continuous | Categorical, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the features, [S]."""
        return [name for column in self.columns for name in column.names]

    @classmethod
    def fit(cls, table: pd.DataFrame, columns: Sequence[str]) -> Self:
        """Fit means, standard deviations and levels to the training rows of `pairs`.

        Raises:
            DataError: the index was made without one of the columns.
        """
        if missing := [name for name in columns if name not in table]:
            raise DataError(f"the index has no side column '{missing[0]}'; `dualflow run` makes it again")
        return cls(tuple(_fit(table[name], name) for name in columns))

    def encode(self, table: pd.DataFrame) -> torch.Tensor:
        """Features [N, S], float32, NaN if unknown. A column that the table lacks is unknown for all scans.

        Raises:
            DataError: a cell of a numeric column is not a number.
        """
        unknown = pd.Series([None] * len(table), dtype=object)
        parts = [column.encode(table.get(column.name, unknown)) for column in self.columns]
        return torch.from_numpy(np.concatenate([np.empty((len(table), 0)), *parts], axis=1).astype(np.float32))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, which `from_dict` reads."""
        return {"columns": [{"kind": type(column).__name__, **asdict(column)} for column in self.columns]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Read the values that `to_dict` returns.

        Raises:
            CheckpointError: the values are not those of a side encoder.
        """
        try:
            return cls(tuple(_column(**entry) for entry in value["columns"]))
        except ValidationError as error:
            entry = error.errors()[0]
            field = ".".join(map(str, entry["loc"]))
            raise CheckpointError(
                f"side encoder does not read back ({field}: {entry['msg']}); copy the model again"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"side encoder does not read back ({error!r}); copy the model again") from error


def _fit(column: pd.Series, name: str) -> Continuous | Categorical:
    # The type is that of the whole table: the training rows of a text column may all be numbers.
    if column.notna().any() and not pd.api.types.is_numeric_dtype(column):
        return Categorical(name, tuple(sorted({str(value) for value in column.dropna()})))
    values = numbers(column).dropna().to_numpy()
    if not len(values):
        return Continuous(name, None, 0.0)
    sd = float(values.std()) if np.ptp(values) > 0 else 0.0
    return Continuous(name, float(values.mean()), sd, float(values.min()), float(values.max()))


def _column(kind: str, **fields: Any) -> Continuous | Categorical:
    """Build a column from JSON values of strictly the right types."""
    column: Continuous | Categorical = _KINDS[kind].validate_json(json.dumps(fields), strict=True)
    return column


_KINDS: dict[str, TypeAdapter[Any]] = {column.__name__: TypeAdapter(column) for column in (Continuous, Categorical)}
