"""Excluded scans, each with the reason and the step that excluded it; one bad scan does not stop a study."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from dualflow.commit import commit_text
from dualflow.data.tsv import read_table, table_text
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest

FACT = "quarantine"
"""Key of `Quarantine.fact()` in the facts of the manifest of an excluded scan."""


@dataclass(frozen=True, order=True)
class Quarantine:
    """One excluded scan.

    Attributes:
        scan: the scan's key, `sub-01` or `sub-01_ses-02`.
        step: name of the step that excluded it.
        reason: what is wrong and what to do, on one line.
    """

    scan: str
    step: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", " ".join(self.reason.split()))

    def fact(self) -> dict[str, str]:
        """The value of `FACT` in the facts of a scan's manifest."""
        return {"step": self.step, "reason": self.reason}

    @classmethod
    def of_manifest(cls, scan: str, manifest: Mapping[str, Any]) -> Self | None:
        """The quarantine that a scan's manifest records, or None if the scan is usable."""
        fact = manifest.get("facts", {}).get(FACT)
        return None if fact is None else cls(scan, fact["step"], fact["reason"])


def without_folders(text: str, *folders: Path) -> str:
    """A text in which paths below `folders` are relative, because names of folders may identify people.

    Of folders inside each other, the innermost counts.
    """
    names = {str(form) for folder in folders for form in (folder, folder.absolute(), folder.resolve())} - {".", os.sep}
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(f"{name}{os.sep}", "")
    return text


def collect(layout: Layout, scans: Iterable[str]) -> list[Quarantine]:
    """All excluded scans, sorted: those of the index, and those of `scans` (keys) that preprocessing excluded.

    Scans without a manifest are omitted because their step has yet to run. Outputs are not verified.
    """
    rows = set(read_quarantine(layout.index_quarantine))
    for scan in scans:
        manifest = read_manifest(layout.scan_manifest(Scan.parse(scan)), verify=False)
        excluded = manifest and Quarantine.of_manifest(scan, manifest)
        if excluded:
            rows.add(excluded)
    return sorted(rows)


def write_quarantine(path: Path, rows: Iterable[Quarantine]) -> None:
    """Write the rows as a TSV table (scan, step, reason), atomically; without rows, only the header."""
    table = pd.DataFrame([asdict(row) for row in rows], columns=["scan", "step", "reason"])
    commit_text(path, table_text(table))


def read_quarantine(path: Path) -> list[Quarantine]:
    """Read the table that `write_quarantine` wrote.

    Raises:
        DataError: the file cannot be read as a table.
    """
    table = read_table(path)
    return [Quarantine(*row) for row in zip(table["scan"], table["step"], table["reason"], strict=True)]


def usable(pairs: pd.DataFrame, rows: Iterable[Quarantine]) -> pd.DataFrame:
    """The rows of `pairs` whose scan is not excluded."""
    excluded = {row.scan for row in rows}
    return pairs[~pairs["scan"].isin(excluded)].reset_index(drop=True)


def count_excluded(rows: Sequence[Quarantine]) -> str:
    """Return `1 scan was excluded` or `N scans were excluded`."""
    return f"{len(rows)} {'scan was' if len(rows) == 1 else 'scans were'} excluded"
