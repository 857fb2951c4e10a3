"""Names of tracked metrics: group, quantity and unit."""

from __future__ import annotations

import re

TARGET = "{target}"
"""Placeholder for the target's unit, such as SUVR."""
UNITS = {
    "nll": "nats_per_voxel",
    "source_nll": "nats_per_voxel",
    "discriminator": "fraction_of_variance",
    "discriminator_accuracy": "fraction",
    "decode_l1": TARGET,
    "interpolation_l1": TARGET,
    "mae": TARGET,
    "round_trip": TARGET,
    "explained_level": "fraction",
}
"""Unit appended to a metric's name. Metrics without a row are dimensionless or name their unit already."""


def metric_name(key: str, target_unit: str, *, flow: bool) -> str:
    """Return the tracked name: `nll` becomes `train/nll_nats_per_voxel`, `validation/mae` `validation/mae_SUVR`.

    The loss of a flow is its negative log-likelihood plus auxiliary terms; that of a baseline is a mean absolute error.
    """
    group, _, name = key.rpartition("/")
    stem = re.sub(r"_\d+$", "", name)
    unit = (UNITS["nll"] if flow else TARGET) if stem == "loss" else UNITS.get(stem, "")
    unit = re.sub(r"[^A-Za-z0-9]+", "_", unit.replace(TARGET, target_unit))
    return f"{group or 'train'}/{name}" + (f"_{unit}" if unit else "")
