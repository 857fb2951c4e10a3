"""Synthetic volumes of a study's scans that no model was trained on: held-out scans, and scans without a target."""

from __future__ import annotations

import sys
from pathlib import Path

from dualflow.config import Config, dump_sections
from dualflow.data.preprocessing_files import scans_on_disk
from dualflow.data.quarantine import Quarantine
from dualflow.data.study_pairs import usable_pairs
from dualflow.inference.conversion_table import conversion_table, write_conversion_table
from dualflow.inference.convert import Converter
from dualflow.inference.scan_conversion import convert_scan
from dualflow.manifest import TRANSIENT, write_manifest
from dualflow.process import keep_freed_memory
from dualflow.progress import track
from dualflow.training.device import select_device

CONVERTED = ("test", "convert")
"""Splits whose scans are converted."""
FORCED = "converted because a study converts every scan"
"""Why a refused scan has volumes."""


def convert(config: Config, name: str, seed: int) -> None:
    """Convert the scans of the splits CONVERTED with model `name` on the device of `train`; skip finished scans.

    Every scan is converted whatever the verdict on it, because the held-out scans are to be evaluated. A scan whose
    conversion fails is in the table with the reason, and the next run tries it again.
    """
    keep_freed_memory()
    layout = config.layout
    converter = Converter.load(
        layout.model(name, seed),
        select_device(config.train.device),
        layout,
        config.study.source,
        config.study.target,
        config.convert,
        force=True,
    )
    pairs = usable_pairs(config)
    pairs = pairs[pairs["split"].isin(CONVERTED)]
    rows = (pairs.iloc[[position]] for position in range(len(pairs)))
    manifests, failed = dict[str, Path](), list[Quarantine]()
    for row in track(rows, f"convert with {name}", len(pairs)):
        scan, raw = row["scan"].iloc[0], config.bids / row["source"].iloc[0]
        result = convert_scan(converter, row, config.study, raw, folders=(layout.root, config.bids))
        if isinstance(result, Quarantine):
            failed.append(result)
            print(f"{scan}: failed: {result.reason}", file=sys.stderr)
        else:
            manifests[scan] = result
    # Other splits or new exclusions leave volumes of scans that are no longer converted. `convert_scan` decides about
    # those that failed.
    expected = {*manifests, *(row.scan for row in failed)}
    for scan in scans_on_disk(layout, "convert"):
        if scan.key not in expected:
            converter.remove(scan)
    write_conversion_table(layout.conversions, conversion_table(layout, manifests, failed, FORCED))
    write_manifest(
        layout.manifest("convert"),
        step="convert",
        outputs={**manifests, "verdicts": layout.conversions},
        inputs={"model": converter.predictor.card.weights_sha256},
        config=dump_sections(config.convert),
        facts={TRANSIENT: True} if failed else {},
    )
