"""The tracer of a PET file, from its name or its sidecar."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from dualflow.data.tsv import MISSING
from dualflow.errors import DataError
from dualflow.imaging.sidecar import read_sidecar
from dualflow.modalities import MODALITIES, Modality

NAMES = {
    "FDG": ("deoxyglucose", "deoxydglucose"),
    "AV45": ("florbetapir", "amyvid"),
    "FBB": ("florbetaben", "neuraceq"),
    "FMM": ("flutemetamol", "vizamyl"),
    "PIB": ("pittsburgh",),
    "NAV4694": ("flutafuranol", "azd4694"),
    "AV1451": ("flortaucipir", "t807", "tauvid"),
    "MK6240": ("florquinitau",),
}
"""Tracer -> its names in sidecars beside the label, in small letters and digits alone."""


def is_tracer(label: str, row: Modality) -> bool:
    """Whether a `trc-` label is the row's tracer; `18FFDG` and `18FDG`, with the isotope, count as `FDG`."""
    tracer = rf"(\d+([A-Z][a-z]?)?)?{row.tracer}"
    return row.tracer is not None and re.fullmatch(tracer, label, re.IGNORECASE) is not None


def is_known_tracer(label: str) -> bool:
    """Whether a label is the tracer of any modality."""
    return any(is_tracer(label, row) for row in MODALITIES.values())


def stated_tracer(file: Path) -> str:
    """The tracer that a file's sidecar states: the label of the modality that it means, otherwise as it is written.

    It is '' without a statement, and where the sidecar cannot be read: preprocessing excludes the scan for it.
    """
    with suppress(DataError):
        text = str(read_sidecar(file).get("TracerName", "")).strip()
        if text.lower() not in {"", "unknown", *(missing.lower() for missing in MISSING)}:
            return _label(text) or text
    return ""


def _label(text: str) -> str | None:
    """The label of the modality that a sidecar's words mean."""
    words = re.sub(r"[^a-z0-9]", "", text.lower())
    for row in MODALITIES.values():
        if row.tracer and any(name in words for name in (row.tracer.lower(), *NAMES.get(row.tracer, ()))):
            return row.tracer
    return None
