"""Flags of preprocessed scans that follow from their records, not from a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bids2table import parse_bids_entities

from dualflow.config import StudyConfig

MIN_REFERENCE_SHOWN = 0.95
"""Share of the reference region in the field of view, below which a scan is flagged."""
EARLY_S = 600.0
"""Seconds after injection in which a PET shows blood flow rather than uptake."""
Record = Mapping[str, Any]


def record_notes(record: Record, study: StudyConfig, usual: Mapping[str, str]) -> list[str]:
    """Notes on a scan: those that preprocessing left, and what its record tells.

    Args:
        record: of the scan.
        study: its study.
        usual: the `usual_versions` of the study.
    """
    images = {"source": record["source"], "target": record["target"] or {}, **record["extra_sources"]}
    notes = [f"{name}: {note}" for name, image in images.items() for note in _image_notes(image)]
    if study.masks and "file" not in record["brain_mask"]:
        notes.append("no brain mask in study.masks, so deepbet's is used")
    # Releases of dualflow that prepare scans in another way have another revision, which repeats them.
    others = [
        f"{name} {version}, most scans with {usual[name]}"
        for name, version in record.get("versions", {}).items()
        if name in usual and usual[name] != version and name != "dualflow"
    ]
    notes += [f"prepared with {text}: remove its manifest to prepare it again" for text in others]
    return [" ".join(note.replace(";", ",").split()) for note in notes]


def usual_versions(records: Sequence[Record]) -> dict[str, str]:
    """The version of each library with which most scans of a study were prepared."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            counts.setdefault(name, Counter())[version] += 1
    return {name: count.most_common(1)[0][0] for name, count in counts.items()}


def _image_notes(image: Record) -> list[str]:
    pet = image.get("pet", {})
    notes = list(pet.get("notes", []))
    first, last = pet.get("acquired_s", (EARLY_S, EARLY_S))
    if pet.get("frames", 1) > 1 and pet["window_s"] is None and pet["times_after"] == "injection" and first < EARLY_S:
        notes.append(
            f"its frames of {first:g} to {last:g} s after injection are averaged, and early ones show blood flow: set "
            "preprocess.pet_window_s"
        )
    reconstruction = parse_bids_entities(image.get("file", "")).get("rec", "")
    if str(reconstruction).lower().startswith("nac"):
        notes.append(f"is reconstructed without correction of attenuation (rec-{reconstruction})")
    shown = image.get("intensity", {}).get("reference_shown", 1.0)
    if shown < MIN_REFERENCE_SHOWN:
        notes.append(f"its field of view holds {shown:.0%} of the reference region")
    return notes
