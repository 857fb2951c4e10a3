"""One raw scan to the model grid, or into quarantine: what the workflow and a batch conversion do with each scan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dualflow.commit import commit_json, commit_text, read_manifest, sha256, write_manifest
from dualflow.config import PreprocessConfig, StudyConfig
from dualflow.data.quarantine import FACT, Quarantine
from dualflow.errors import CommitError, DualflowError
from dualflow.imaging.preprocess import preprocess_pair, write_pair
from dualflow.layout import NOT_BIDS, Layout, Scan, derivative_description
from dualflow.modalities import modality

STEP = "preprocess"


def describe_derivatives(layout: Layout, name: str) -> None:
    """Write what makes the derivatives of study `name` a valid BIDS dataset."""
    commit_json(layout.derivatives / "dataset_description.json", derivative_description(name))
    commit_text(layout.derivatives / ".bidsignore", "\n".join(NOT_BIDS) + "\n")


def prepare_scan(
    layout: Layout, scan: Scan, source: Path, target: Path | None, study: StudyConfig, config: PreprocessConfig
) -> Quarantine | None:
    """Preprocess a scan unless that is done and unchanged; return why it was set aside, or None.

    Whatever is wrong with a scan sets that scan aside and nothing else; only an output that cannot be written stops.

    Raises:
        CommitError: an output cannot be written.
    """
    source_row, target_row = modality(study.source), modality(study.target)
    files = {"source": source} | ({"target": target} if target else {})
    # How many jobs share the work changes no result.
    section = config.model_dump(mode="json", exclude={"shards"}) | {"source": study.source, "target": study.target}
    manifest = layout.scan_manifest(scan)
    inputs, outputs, facts = dict.fromkeys(files, "unreadable"), dict[str, Path](), dict[str, Any]()
    refused = None
    try:
        hashes = {name: sha256(file) for name, file in files.items()}
        if read_manifest(manifest, inputs=hashes, config=section) is not None:
            return None
        pair = preprocess_pair(source, target, source_row, target_row, config)
        outputs = write_pair(pair, layout, scan, source_row, target_row)
        inputs, facts = hashes, {"quality": pair.record["quality"]}
    except CommitError:  # a full disk is no fault of the scan
        raise
    except Exception as error:  # one bad scan must not take the others down, whatever is wrong with it
        known = isinstance(error, DualflowError)
        refused = Quarantine(scan.key, STEP, str(error) if known else f"{source.name}: {type(error).__name__}: {error}")
        print(f"{scan.key}: set aside: {refused.reason}", file=sys.stderr)
        facts = {FACT: refused.fact()}
    write_manifest(manifest, step=STEP, outputs=outputs, inputs=inputs, config=section, facts=facts)
    return refused
