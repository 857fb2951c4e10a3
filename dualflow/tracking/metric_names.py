"""Names of tracked metrics: group, quantity and unit."""

from __future__ import annotations

import re
from collections.abc import Collection

BEST = "best_score"
"""Lowest selection score of a training: that of the weights that are kept."""
TARGET = "{target}"
"""Placeholder for the target's unit, such as SUVR."""
UNITS = {
    "nll": "nats_per_voxel",
    "source_nll": "nats_per_voxel",
    "elbo": "nats_per_voxel",
    "reconstruction": "nats_per_voxel",
    "divergence": "nats_per_voxel",
    "discriminator": "fraction_of_variance",
    "discriminator_accuracy": "fraction",
    "decode_l1": TARGET,
    "interpolation_l1": TARGET,
    "mae": TARGET,
    "l1": TARGET,
    "round_trip": TARGET,
    "explained_level": "fraction",
}
"""Unit appended to a metric's name. Metrics without a row are dimensionless or name their unit already."""


def loss_term(terms: Collection[str]) -> str:
    """Return the term among those of an objective that has the unit of its loss; empty for a loss without unit."""
    names = {key.rpartition("/")[2] for key in terms}
    return next((term for term in ("nll", "l1", "reconstruction") if term in names), "")


def metric_name(key: str, target_unit: str, loss: str = "") -> str:
    """Return the tracked name: `nll` becomes `train/nll_nats_per_voxel`, `validation/mae` `validation/mae_SUVR`.

    Args:
        key: name of the metric, with its group if it is not that of the training.
        target_unit: unit of the target, such as SUVR.
        loss: the `loss_term` of the objective.
    """
    group, _, name = key.rpartition("/")
    stem = re.sub(r"_\d+$", "", name)
    unit = UNITS.get(loss if stem in ("loss", "score", BEST) else stem, "")
    return f"{group or 'train'}/{name}{unit_suffix(unit, target_unit)}"


def unit_suffix(unit: str, target_unit: str) -> str:
    """The end of a metric's name: `_SUVR` for TARGET, `_percent` for %, and empty without a unit."""
    text = unit.replace(TARGET, target_unit).replace("%", "percent").replace("/", "_per_")
    text = re.sub(r"[^A-Za-z0-9]+", "_", text)
    return f"_{text}" if text else ""
