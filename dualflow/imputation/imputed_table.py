"""The table of measured and drawn region values: its text, and the completed tables that it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.data.tsv import read_typed_table, table_text
from dualflow.errors import DataError
from dualflow.layout import Scan, sidecar_path

COLUMNS = {
    "subject": "Label of the subject",
    "session": "Label of the session, n/a without sessions",
    "region": "Region of the atlas, or meta-region",
    "draw": "Number of the completed table, from 1; measured values are the same in all of them",
    "suvr": "Mean of the region in the target's unit",
    "observed": "1 if the target was measured, 0 if the value is drawn",
}
"""Columns with their descriptions."""
IMPUTATION = "Imputation"
"""Key of the facts of the imputation in the sidecar."""
DIGITS = 6


@dataclass(frozen=True)
class ImputedTable:
    """Completed tables of a study.

    Attributes:
        scans: keys of the N scans.
        regions: names of the R regions and meta-regions.
        values: `[M, N, R]`.
        observed: whether the target of a scan was measured `[N]`.
        facts: how the missing values were drawn.
    """

    scans: Sequence[str]
    regions: Sequence[str]
    values: NDArray[np.float64]
    observed: NDArray[np.bool_]
    facts: dict[str, Any]

    @property
    def subjects(self) -> list[str]:
        """Subject of each scan."""
        return [Scan.parse(key).subject for key in self.scans]

    def text(self) -> str:
        """The table as TSV, columns COLUMNS; made scan by scan, because columns take more memory than text."""
        parts = (table_text(self._rows(position)) for position in range(len(self.scans)))
        return next(parts) + "".join(part.partition("\n")[2] for part in parts)

    def _rows(self, position: int) -> pd.DataFrame:
        """The rows of one scan."""
        scan, values = Scan.parse(self.scans[position]), self.values[:, position]
        draws, regions = values.shape
        return pd.DataFrame(
            {
                "subject": scan.subject,
                "session": scan.session,
                "region": np.repeat(np.array(self.regions, dtype=object), draws),
                "draw": np.tile(np.arange(1, draws + 1), regions),
                "suvr": values.T.reshape(-1).round(DIGITS),
                "observed": int(self.observed[position]),
            }
        )

    def sidecar(self) -> dict[str, Any]:
        """Descriptions of the columns, and the facts."""
        columns: dict[str, Any] = {name: {"Description": text} for name, text in COLUMNS.items()}
        return columns | {IMPUTATION: self.facts}

    @classmethod
    def read(cls, path: Path) -> ImputedTable:
        """Read a table that `text` and `sidecar` wrote.

        Raises:
            DataError: the table is missing, incomplete or without its sidecar.
        """
        if not path.is_file():
            raise DataError(f"{path}: no imputed regions; run `dualflow impute` with the same configuration first")
        try:
            table = read_typed_table(path)[list(COLUMNS)]
            facts = json.loads(sidecar_path(path).read_text())[IMPUTATION]
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path} or its sidecar cannot be read ({reason}); run `dualflow impute` again") from None
        labels = table[["subject", "session"]].drop_duplicates()
        sessions = [None if pd.isna(label) else str(label) for label in labels["session"]]
        scans = [Scan(str(a), b).key for a, b in zip(labels["subject"], sessions, strict=True)]
        regions = list(dict.fromkeys(table["region"]))
        draws = int(table["draw"].max())
        if len(table) != len(scans) * len(regions) * draws:
            raise DataError(
                f"{path}: {len(table)} rows, expected a row per scan, region and draw; run `dualflow impute`"
            )
        values = table["suvr"].to_numpy(float).reshape(len(scans), len(regions), draws).transpose(2, 0, 1)
        observed = table["observed"].to_numpy().reshape(len(scans), -1)[:, 0] == 1
        return cls(scans, regions, values, observed, facts)
