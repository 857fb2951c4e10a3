"""Figures of a preprocessed scan by which its input is judged, such as against those of a model's training scans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from dualflow.imaging.mask_qc import BOUNDS

TURNED_DEG = 60.0
"""Rotation to the template above which a head lies turned in its header; heads are tilted by up to 45 degrees."""
_TEMPLATE = {
    "template_mi": "mutual_information_nats",
    "template_dice": "overlap",
    "coverage": "coverage",
    "rotation_deg": "rotation_deg",
}


def input_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a scan's source, from its record; NaN for those that an older record lacks.

    Returns:
        By name: `voxel_mm`, the largest voxel edge; `brain_ml`; `mask_solidity`, `mask_core`, `mask_outside`,
        `mask_missing`, `mask_symmetry` and `mask_stretch`, as in `mask_qc`; and of the registration with the template
        `template_mi` in nats, `template_dice`, `coverage`, the share of the template's brain in the scan's field of
        view, and `rotation_deg`, the angle between the head and its header's axes.
    """
    quality = record.get("quality", {})
    mask, template = quality.get("brain_mask", {}), quality.get("source_to_template", {})
    return {
        "voxel_mm": round(float(voxel_sizes(np.array(record["native_grid"]["affine"])).max()), 4),
        "brain_ml": float(quality.get("brain_ml", np.nan)),
        **{f"mask_{name}": float(mask.get(name, np.nan)) for name in BOUNDS},
        **{name: float(template.get(key, np.nan)) for name, key in _TEMPLATE.items()},
    }
