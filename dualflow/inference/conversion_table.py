"""The table of a conversion: one row per scan with its verdict, reasons, seconds and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from dualflow.commit import commit_text
from dualflow.data.quarantine import Quarantine
from dualflow.data.tsv import table_text
from dualflow.inference.convert import STEP, VERDICT
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest

FAILED = "failed"
"""Verdict on a scan that could not be preprocessed or converted."""
COLUMNS = ("scan", "verdict", "reason", "seconds")
ORDER = (FAILED, "refused", "review", "ok")
"""Verdicts, the worst first."""


def conversion_table(layout: Layout, scans: Iterable[str], excluded: Sequence[Quarantine]) -> pd.DataFrame:
    """One row per scan, the worst first: the columns COLUMNS, then every figure of its verdict.

    Args:
        layout: of the conversion.
        scans: keys of the scans that were to be converted; those without a manifest are left out.
        excluded: scans that could not be converted.
    """
    failed = {row.scan: row.reason for row in excluded}
    rows = [{"scan": scan, "verdict": FAILED, "reason": reason} for scan, reason in failed.items()]
    for key in scans:
        manifest = read_manifest(layout.manifest(f"{STEP}/{key}"), verify=False)
        if manifest is None or key in failed:
            continue
        verdict = manifest["facts"][VERDICT]
        forced = verdict["verdict"] == "refused" and bool(manifest["outputs"])
        reasons = [*verdict["reasons"], *(["converted because of --force"] if forced else [])]
        row = {"scan": key, "verdict": verdict["verdict"], "reason": "; ".join(reasons)}
        rows.append(row | {"seconds": _seconds(layout, Scan.parse(key))} | verdict["figures"])
    columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    table = pd.DataFrame(rows, columns=columns)
    # Within a verdict, the scan farthest beyond its threshold comes first.
    excess = [table.get(name, pd.Series(index=table.index, dtype=float)).astype(float) for name in _SCORES]
    limits = [
        table.get(f"{name}_threshold", pd.Series(index=table.index, dtype=float)).astype(float) for name in _SCORES
    ]
    worst = pd.concat([score / limit for score, limit in zip(excess, limits, strict=True)], axis=1).max(axis=1)
    order = table.assign(rank=table["verdict"].map(ORDER.index), worst=-worst.fillna(0.0))
    return table.loc[order.sort_values(["rank", "worst", "scan"]).index].reset_index(drop=True)


_SCORES = ("typicality", "lesion")


def write_conversion_table(path: Path, table: pd.DataFrame) -> None:
    """Write the table as TSV, atomically; unknown figures are n/a."""
    text = table.copy()
    text["reason"] = [" ".join(str(reason).split()) for reason in table["reason"]]
    commit_text(path, table_text(text))


def summarise(table: pd.DataFrame) -> str:
    """Return the count of each verdict, such as `55 ok, 3 review, 2 refused`."""
    counts = table["verdict"].value_counts()
    return ", ".join(f"{counts[name]} {name}" for name in reversed(ORDER) if name in counts) or "no scans"


def _seconds(layout: Layout, scan: Scan) -> float:
    """Seconds of preprocessing and conversion; NaN if unknown."""
    total = 0.0
    for path in (layout.scan_seconds(scan), layout.conversion_seconds(scan)):
        try:
            total += sum(json.loads(path.read_text()).values())
        except (OSError, ValueError):
            return float("nan")
    return round(total, 2)
