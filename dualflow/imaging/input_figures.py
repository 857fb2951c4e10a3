"""Figures of a scan's preprocessing that a verdict on it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dualflow.imaging.geometry import spacing_of


def input_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a preprocessed scan by name, from its record; NaN if the record, of an older version, lacks one.

    `voxel_mm` is the largest voxel edge of the source. `rotation_deg`, `template_mi` (nats) and `dice` describe the
    registration of its brain with the template, `brain_ml` is the volume of its mask, and the others are the metrics
    of `mask_qc`.
    """
    quality = record["quality"]
    template = quality["source_to_template"]
    return {
        "voxel_mm": float(max(spacing_of(np.array(record["native_grid"]["affine"])))),
        "rotation_deg": float(template.get("rotation_deg", np.nan)),
        "template_mi": float(template["mutual_information_nats"]),
        "dice": float(template["overlap"]),
        "brain_ml": float(quality["brain_ml"]),
        **{name: float(value) for name, value in quality["brain_mask"].items()},
    }
