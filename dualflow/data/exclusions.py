"""Decisions of a reviewer on scans, as the quality control page exports them: a table that the index reads."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from dualflow.data.tsv import read_table, summarise_names
from dualflow.errors import DataError
from dualflow.layout import Scan

STEP = "review"
"""Name of the step in the quarantine table."""
COLUMNS = ("subject", "session", "decision", "reason")
"""Columns of the table; `session` may be left out in a study without sessions."""
KEEP, EXCLUDE, EXCLUDE_TARGET = DECISIONS = "keep", "exclude", "exclude-target"
"""What a reviewer can decide; without its target a scan is one to convert."""


class Decision(NamedTuple):
    """A reviewer's decision on a scan, one of DECISIONS, and the reason, '' for none."""

    decision: str
    reason: str


def read_decisions(path: Path | None) -> dict[str, Decision]:
    """Decisions by key of the scan; none without a path.

    Raises:
        DataError: the table cannot be read, lacks a column, has two rows for a scan or an unknown decision, or excludes
            something without a reason.
    """
    if path is None:
        return {}
    table = read_table(path, labels=("subject",))
    missing = [name for name in COLUMNS if name not in table and name != "session"]
    if missing:
        raise DataError(
            f"{path}: has no column '{missing[0]}', expected {', '.join(COLUMNS)}; export the table from qc.html, or "
            "add the column"
        )
    decisions: dict[str, Decision] = {}
    for row in table.to_dict("records"):
        if row["subject"] is None:
            raise DataError(f"{path}: a row has no subject, expected a label; add it or remove the row")
        subject, session = str(row["subject"]).removeprefix("sub-"), row.get("session")
        scan = Scan(subject, session and str(session).removeprefix("ses-")).key
        decision, reason = str(row["decision"]), " ".join(str(row["reason"] or "").split())
        if decision not in DECISIONS:
            raise DataError(
                f"{path}: decision '{decision}' on {scan} is unknown, expected {', '.join(DECISIONS[:-1])} or "
                f"{DECISIONS[-1]}; correct it"
            )
        if decision != KEEP and not reason:
            raise DataError(f"{path}: {scan} is excluded without a reason; write one, for those who read the report")
        if scan in decisions:
            raise DataError(f"{path}: has more than one row for {scan}, expected one decision; keep one")
        decisions[scan] = Decision(decision, reason)
    return decisions


def review_reasons(path: Path | None, known: Collection[str]) -> dict[str, dict[str, str]]:
    """Reasons by key of the scan, for each of DECISIONS.

    Args:
        path: table of decisions; None for none.
        known: keys of all scans of the study, the excluded ones included.

    Raises:
        DataError: as `read_decisions`, or the table names a scan that the study does not have.
    """
    decisions = read_decisions(path)
    if unknown := sorted(set(decisions) - set(known)):
        raise DataError(
            f"{path}: the study has no scan {summarise_names(unknown, 3)}, expected scans of its dataset; correct "
            "subject and session, or remove the row"
        )
    return {
        decision: {scan: row.reason for scan, row in decisions.items() if row.decision == decision}
        for decision in DECISIONS
    }
