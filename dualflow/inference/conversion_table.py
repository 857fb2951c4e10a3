"""The table of a conversion: one row per scan with its verdict, reasons, seconds and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dualflow.commit import commit_text
from dualflow.data.quarantine import Quarantine
from dualflow.data.tsv import numbers, table_text
from dualflow.errors import printable
from dualflow.imaging.stopwatch import total_seconds
from dualflow.inference.conversion_record import SIDE, STEP, VERDICT
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest

DIGITS = 12
"""Leading digits of the SHA-256 of a model's weights, by which it is named."""
FAILED = "failed"
"""Verdict on a scan that could not be preprocessed or converted."""
COLUMNS = ("scan", "verdict", "converted", "reason", "seconds", "model")
SHOWN = 10
"""Scans whose reasons the console shows."""
ORDER = (FAILED, "refused", "review", "ok")
"""Verdicts, the worst first."""
THRESHOLD = "_threshold"
FORCED = "converted because of --force"
"""Why a refused scan has volumes."""
KEPT = "its volumes are those of an earlier conversion"
"""Why a failed scan has volumes."""


def conversion_table(
    layout: Layout, scans: Iterable[str], excluded: Sequence[Quarantine], forced: str = FORCED
) -> pd.DataFrame:
    """One row per scan, the worst first: the columns COLUMNS, its side information, then every figure of its verdict.

    A side column with the name of another column gets the prefix `side_`.

    Args:
        layout: of the conversion.
        scans: keys of the scans that were to be converted; those without a manifest are left out.
        excluded: scans that could not be converted.
        forced: why refused scans have volumes.
    """
    failed = {row.scan: row.reason for row in excluded}
    entries: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ({"scan": scan, "verdict": FAILED, "converted": False, "reason": _with_kept(layout, scan, reason)}, {}, {})
        for scan, reason in failed.items()
    ]
    for key in scans:
        manifest = read_manifest(layout.manifest(f"{STEP}/{key}"), verify=False)
        if manifest is None or key in failed:
            continue
        verdict = manifest["facts"][VERDICT]
        converted = bool(manifest["outputs"])
        is_forced = verdict["verdict"] == "refused" and converted
        reasons = [*verdict["reasons"], *([forced] if is_forced else [])]
        scan = Scan.parse(key)
        seconds = round(total_seconds(layout.scan_seconds(scan), layout.conversion_seconds(scan)), 2)
        model = manifest["inputs"].get("model", "")[:DIGITS] or None
        values = (key, verdict["verdict"], converted, "; ".join(reasons), seconds, model)
        entries.append((dict(zip(COLUMNS, values, strict=True)), manifest["facts"][SIDE], verdict["figures"]))
    taken = {*COLUMNS, *(name for _, _, figures in entries for name in figures)}
    rows = [
        base | {f"side_{name}" if name in taken else name: value for name, value in side.items()} | figures
        for base, side, figures in entries
    ]
    columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    return worst_first(pd.DataFrame(rows, columns=columns))


def _with_kept(layout: Layout, scan: str, reason: str) -> str:
    """The reason of a failed scan, which says so if volumes of an earlier conversion are left."""
    manifest = read_manifest(layout.manifest(f"{STEP}/{scan}"), verify=False)
    return f"{reason}; {KEPT}" if manifest and manifest["outputs"] else reason


def worst_first(table: pd.DataFrame) -> pd.DataFrame:
    """Sort a table with `scan` and `verdict` by verdict, then by the distance beyond a threshold, then by key."""
    excess = pd.Series(-np.inf, index=table.index)
    for column in table.columns:
        if is_threshold(table, column):
            value, threshold = numbers(table[column.removesuffix(THRESHOLD)]), numbers(table[column])
            # Relative to the threshold, so that figures of different units are comparable.
            scale = threshold.abs().where(threshold != 0, 1.0)
            excess = excess.combine((value - threshold) / scale, np.fmax)
    order = table.assign(_rank=table["verdict"].map(ORDER.index), _excess=-excess)
    order = order.sort_values(["_rank", "_excess", "scan"], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def is_threshold(table: pd.DataFrame, column: str) -> bool:
    """Whether a column holds the value of another one, `NAME` of `NAME_threshold`, from which a scan is unusual."""
    return column.endswith(THRESHOLD) and column.removesuffix(THRESHOLD) in table.columns


def write_conversion_table(path: Path, table: pd.DataFrame) -> None:
    """Write the table as TSV, atomically; unknown figures are n/a."""
    text = table.copy()
    text["reason"] = [" ".join(str(reason).split()) for reason in table["reason"]]
    commit_text(path, table_text(text))


def summarise(table: pd.DataFrame) -> str:
    """Return the count of each verdict, such as `55 ok, 3 review, 2 refused`."""
    return count_verdicts(Counter(table["verdict"])) or "no scans"


def count_verdicts(counts: Mapping[str, int]) -> str:
    """The counts by verdict as text, the best verdict first."""
    return ", ".join(f"{counts[name]} {name}" for name in reversed(ORDER) if counts.get(name))


def missing_volumes(table: pd.DataFrame) -> int:
    """Number of scans that were not converted."""
    return int((~table["converted"]).sum())


def conversion_text(table: pd.DataFrame, out: Path) -> str:
    """What a conversion did, for the console: counts, and the reasons of the first scans that are not ok."""
    notable = table[table["verdict"] != "ok"]
    lines = [f"{row.scan}: {row.verdict}: {row.reason}" for row in notable.head(SHOWN).itertuples()]
    if len(notable) > SHOWN:
        lines.append(f"... and {len(notable) - SHOWN} more in conversion.tsv")
    return "\n".join(
        [*map(printable, lines), f"{summarise(table)}; volumes, conversion.tsv and conversion.html are in {out}"]
    )
