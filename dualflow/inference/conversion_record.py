"""The record of a conversion in its manifest: inputs, verdict, side values and origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualflow.config import ConvertConfig
from dualflow.digests import digest_of, sha256
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest

if TYPE_CHECKING:  # it imports torch, which the last step of a study does not need
    from dualflow.models.card import ModelCard

STEP = "convert"
"""Name of the step in manifests and in the quarantine table."""
VERDICT = "verdict"
"""Key of the verdict in the facts of a conversion's manifest."""
SIDE = "side"
"""Key of the raw side values in those facts."""
ORIGIN = "origin"
"""Key of the digest of where the scan is from, in those facts; a study's conversions have none."""


def conversion_inputs(card: ModelCard, layout: Layout, scan: Scan, side: Mapping[str, Any]) -> dict[str, str]:
    """Inputs in the manifest of a conversion; `side` has the raw side values."""
    return {
        "model": card.weights_sha256,
        "card": card_digest(card),
        "reference": card.reference_sha256,
        "scan": sha256(layout.scan_manifest(scan)),
        "side": digest_of({name: str(value) for name, value in side.items()}),
    }


def card_digest(card: ModelCard) -> str:
    """Digest of what a card tells beside the weights, such as the constant spread and the levels of side columns."""
    return digest_of(card.model_dump(mode="json", exclude={"training", "dualflow", "commit", "torch", "device"}))


def is_converted(manifest: Path, inputs: Mapping[str, str], config: ConvertConfig, *, force: bool) -> bool:
    """Whether a conversion is done and unchanged; with `force`, that of a refused scan is not.

    Args:
        manifest: of the conversion.
        inputs: its `conversion_inputs`.
        config: how samples are drawn.
        force: whether refused scans are converted too.
    """
    record = read_manifest(manifest, inputs=inputs, config=config.model_dump(mode="json"))
    return record is not None and not (force and not record["outputs"])


def verdict_of(manifest: Path) -> str:
    """The verdict in the manifest of a conversion."""
    return str((read_manifest(manifest, verify=False) or {})["facts"][VERDICT]["verdict"])


def side_values(card: ModelCard, row: Mapping[Any, Any]) -> dict[str, Any]:
    """The raw side values that the model takes, from a row of the index; None if unknown."""
    values = {column.name: row.get(column.name) for column in card.side.columns}
    return {name: None if value != value else value for name, value in values.items()}
