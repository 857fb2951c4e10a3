"""Tables of an output folder, which cover the scans of all commands that converted into it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import IO

import pandas as pd

from dualflow.data.quarantine import Quarantine, read_quarantine, write_quarantine
from dualflow.errors import DataError
from dualflow.inference.conversion_record import STEP
from dualflow.inference.conversion_table import conversion_table, write_conversion_table
from dualflow.inference.output_folder import converted_scans
from dualflow.layout import Layout
from dualflow.lifetime import exclusive
from dualflow.manifest import read_manifest
from dualflow.models.card import ModelCard


def tables_lock(layout: Layout) -> AbstractContextManager[IO[str]]:
    """The lock of a folder's tables and page: commands for different subjects may end at the same time."""
    return exclusive(layout.lock(STEP), f"another conversion writes its tables to {layout.root}; waiting for it")


def write_tables(layout: Layout, scans: Collection[str], excluded: Sequence[Quarantine]) -> pd.DataFrame:
    """Write quarantine.tsv and conversion.tsv of an output folder; return the rows of this command's scans.

    Scans of earlier commands keep their rows: those with a conversion by its manifest, those that failed by the earlier
    quarantine.tsv.

    Args:
        layout: of the output folder.
        scans: keys of the scans of this command.
        excluded: those that could not be converted, and further ones that the input excludes.
    """
    mine = {*scans, *(row.scan for row in excluded)}
    with tables_lock(layout):
        others = [row for row in _quarantined(layout) if row.scan not in mine]
        write_quarantine(layout.quarantine, sorted([*excluded, *others]))
        table = folder_table(layout)
        write_conversion_table(layout.conversions, table)
    return table[table["scan"].isin(mine)].reset_index(drop=True)


def folder_table(layout: Layout) -> pd.DataFrame:
    """The `conversion_table` of all scans of an output folder; call it with its lock."""
    return conversion_table(layout, converted_scans(layout), _quarantined(layout))


def scans_of_other_models(layout: Layout, card: ModelCard) -> int:
    """Number of scans in an output folder that a model with other weights converted."""
    records = (read_manifest(layout.manifest(f"{STEP}/{key}"), verify=False) for key in converted_scans(layout))
    return sum(record is not None and record["inputs"].get("model") != card.weights_sha256 for record in records)


def _quarantined(layout: Layout) -> list[Quarantine]:
    """The rows of quarantine.tsv; none if it is missing or damaged, because that must not end a long conversion."""
    with suppress(DataError, KeyError):
        return read_quarantine(layout.quarantine)
    return []
