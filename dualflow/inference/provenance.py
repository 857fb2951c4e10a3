"""JSON sidecars of converted files: what they show, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dualflow.config import ConvertConfig
from dualflow.imaging.sidecar import PROGRAM
from dualflow.inference.region_table import COLUMNS
from dualflow.inference.verdict import Verdict
from dualflow.modalities import Modality
from dualflow.models.card import ModelCard

DISCLAIMER = (
    "Synthetic: computed by a model of the target given the source, not measured. It shows what is expected for "
    "people with such a source image, not this person's own findings. For research only, not for clinical use."
)
_DESCRIPTIONS = {
    "synth": "Point estimate: the expected target given source and side information",
    "synthmean": "Mean of the samples",
    "synthstd": "Standard deviation of the samples, per voxel",
    "synthq05": "5th percentile of the samples, per voxel",
    "synthq50": "Median of the samples, per voxel",
    "synthq95": "95th percentile of the samples, per voxel",
}
_WITHOUT_SAMPLES = {
    "synthstd": "Root mean squared error of voxels on the validation people, the same in the whole brain",
    "sd": "Root mean squared error of region means on the validation people, the same for all regions; n/a for "
    "meta-regions, and without such people",
}
"""The spread of a model without samples, as a volume and as a column of the region table."""
_NATIVE = {"SpatialReference": "orig", "Resolution": "The source scan's own grid"}


def volume_sidecar(
    desc: str,
    card: ModelCard,
    row: Modality,
    sampling: ConvertConfig | None,
    side: Mapping[str, Any],
    verdict: Verdict,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """The sidecar of a synthetic volume.

    Args:
        desc: the volume's BIDS `desc`.
        card: the model's card.
        row: modality of the target.
        sampling: how samples were drawn; None for a model without samples.
        side: raw side values by column, in their own units; null if unknown.
        verdict: on the scan and its prediction.
        record: of the scan's preprocessing.
    """
    texts = _DESCRIPTIONS if sampling else _DESCRIPTIONS | _WITHOUT_SAMPLES
    return {
        "Description": f"{texts.get(desc, 'One joint sample')}. {DISCLAIMER}",
        "Synthetic": True,
        "Verdict": verdict.to_dict(),
        "SyntheticModel": _model(card),
        **({"Sampling": sampling.model_dump(mode="json")} if sampling else {}),
        "SideInformation": {column.name: _value(side.get(column.name)) for column in card.side.columns},
        "Source": {key: record["source"][key] for key in ("file", "sha256")},
        "SourceToTemplate": record["source_to_template"],
        "Units": row.unit,
        "SkullStripped": True,
        **_NATIVE,
        "GeneratedBy": [PROGRAM, {"Name": "torch", "Version": torch.__version__}],
    } | ({"TracerName": row.tracer} if row.tracer else {})


def deviation_sidecar(card: ModelCard, source: str) -> dict[str, Any]:
    """The sidecar of a map of deviations of a source from the training scans of a model."""
    return {
        "Description": f"Deviation of the {source} from the model's training scans, smoothed; negative is darker",
        "SyntheticModel": _model(card),
        "Units": "robust standard deviations of the training scans, over the scan's own root mean square",
        "SkullStripped": True,
        **_NATIVE,
        "GeneratedBy": [PROGRAM],
    }


def region_sidecar(card: ModelCard, row: Modality, sampling: ConvertConfig | None) -> dict[str, Any]:
    """The sidecar of a region table: the model, description and unit of each column; `sampling` as in a volume's."""
    texts = COLUMNS if sampling else COLUMNS | {"sd": _WITHOUT_SAMPLES["sd"]}
    measured = ("mean", "sd", "low", "high")
    columns = {
        name: {"Description": text} | ({"Units": row.unit} if name in measured else {}) for name, text in texts.items()
    }
    return columns | {"Description": DISCLAIMER, "Synthetic": True, "SyntheticModel": _model(card)}


def _model(card: ModelCard) -> dict[str, Any]:
    """What identifies a model: its name and seed, the version and data that trained it, and the hash of its weights."""
    return {key: getattr(card, key) for key in ("name", "seed", "dualflow", "data_digest", "weights_sha256")}


def _value(value: Any) -> Any:
    """A side value as JSON; null if it is unknown."""
    if value is None or value != value:
        return None
    return value if isinstance(value, str) else float(value)
