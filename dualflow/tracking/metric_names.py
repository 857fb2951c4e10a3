"""Names under which numbers of a training are tracked: where they come from, what they are, and their unit."""

from __future__ import annotations

import re

TARGET = "{target}"
"""Stands for the target's unit, such as SUVR."""
UNITS = {
    "nll": "nats_per_voxel",
    "source_nll": "nats_per_voxel",
    "discriminator": "of_variance",
    "discriminator_accuracy": "share",
    "decode_l1": TARGET,
    "mae": TARGET,
    "round_trip": TARGET,
    "explained_level": "share",
}
"""Unit behind the name of a number; one without a row is a pure number, or has its unit in its name."""


def tracked_name(key: str, target_unit: str, *, flow: bool) -> str:
    """`nll` becomes `train/nll_nats_per_voxel`, `validation/mae` becomes `validation/mae_SUVR`.

    The loss is a flow's negative log-likelihood with what is added to it, or a network's mean absolute error.
    """
    group, _, name = key.rpartition("/")
    stem = re.sub(r"_\d+$", "", name)
    unit = (UNITS["nll"] if flow else TARGET) if stem == "loss" else UNITS.get(stem, "")
    unit = re.sub(r"[^A-Za-z0-9]+", "_", unit.replace(TARGET, target_unit))
    return f"{group or 'train'}/{name}" + (f"_{unit}" if unit else "")
