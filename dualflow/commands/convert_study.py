"""Synthetic volumes of a study's scans that no model was trained on: held-out scans, and scans without a target."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

from dualflow.config import Config, dump_sections
from dualflow.data.quarantine import Quarantine, without_folders
from dualflow.data.study_pairs import iterate_split, usable_pairs
from dualflow.errors import DataError
from dualflow.inference.conversion_table import conversion_table, write_conversion_table
from dualflow.inference.convert import STEP, Converter, side_values
from dualflow.manifest import remove_step, write_manifest
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
    conversion fails is in the table with the reason.
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
    card = converter.predictor.card
    pairs = usable_pairs(config)
    rows = {row["scan"]: row for row in pairs.to_dict("records")}
    items = chain.from_iterable(iterate_split(config, pairs, split, card.side) for split in CONVERTED)
    manifests, failed = dict[str, Path](), list[Quarantine]()
    for item in track(items, f"convert with {name}", int(pairs["split"].isin(CONVERTED).sum())):
        row = rows[item["scan"]]
        raw = config.bids / row["source"]
        try:
            manifests[item["scan"]] = converter.convert_if_needed(item, side_values(card, row), raw)
        except DataError as error:  # a defective scan must not stop the others
            failed.append(Quarantine(item["scan"], STEP, without_folders(str(error), layout.root, config.bids)))
            print(f"{item['scan']}: failed: {error}", file=sys.stderr)
    # Other splits or new exclusions leave volumes of scans that are no longer converted.
    for manifest in layout.manifest("convert/any").parent.glob("*.json"):
        if manifest.stem not in manifests:
            remove_step(manifest)
    write_conversion_table(layout.conversions, conversion_table(layout, manifests, failed, FORCED))
    write_manifest(
        layout.manifest("convert"),
        step="convert",
        outputs={**manifests, "verdicts": layout.conversions},
        inputs={"model": card.weights_sha256},
        config=dump_sections(config.convert),
    )
