"""Synthetic volumes for everyone the model was not trained on: held-out people, and those without a target."""

from __future__ import annotations

import json
from pathlib import Path

from dualflow.commit import digest_of, read_manifest, sha256, write_manifest
from dualflow.config import Config
from dualflow.imaging.volume import sidecar_path
from dualflow.inference.convert import convert_scan
from dualflow.inference.predict import load_predictor
from dualflow.layout import Scan
from dualflow.modalities import modality
from dualflow.progress import track
from dualflow.steps.common import dump, load_split, usable_pairs

CONVERTED = ("test", "convert")


def convert(config: Config, name: str, seed: int) -> None:
    """Convert the scans of the splits CONVERTED with model `name`; one that is done and unchanged is left as it is."""
    layout = config.layout
    source_row, target_row = modality(config.study.source), modality(config.study.target)
    folder = layout.model(name, seed)
    predictor = load_predictor(folder)
    pairs = usable_pairs(config)
    items = [item for split in CONVERTED for item in load_split(config, pairs, split, predictor.side).items]
    section = dump(config.convert)
    done = {}
    for item in track(items, f"convert with {name}"):
        scan = Scan.parse(item["scan"])
        manifest = layout.manifest(f"convert/{scan.key}")
        inputs = {
            "model": predictor.card["weights_sha256"],
            "scan": sha256(layout.scan_manifest(scan)),
            "side": digest_of(item["side"].tolist()),
        }
        if read_manifest(manifest, inputs=inputs, config=section) is None:
            _remove_volumes(manifest)
            record = json.loads(layout.record(scan, source_row).read_text())
            files = convert_scan(predictor, item, record, layout, source_row, target_row, config.convert)
            write_manifest(manifest, step="convert", outputs=files, inputs=inputs, config=section)
        done[scan.key] = manifest
    # After another split or a new quarantine, volumes of people who are no longer converted must not stay.
    for manifest in layout.manifest("convert/any").parent.glob("*.json"):
        if manifest.stem not in done:
            _remove_volumes(manifest)
            manifest.unlink()
    write_manifest(
        layout.manifest("convert"),
        step="convert",
        outputs=done,
        inputs={"model": predictor.card["weights_sha256"]},
        config=section,
    )


def _remove_volumes(manifest: Path) -> None:
    """Remove the volumes that an earlier conversion of a scan wrote, with their sidecars."""
    try:
        outputs = json.loads(manifest.read_text())["outputs"].values()
        volumes = [manifest.parent / entry["path"] for entry in outputs]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    for volume in volumes:
        volume.unlink(missing_ok=True)
        sidecar_path(volume).unlink(missing_ok=True)
