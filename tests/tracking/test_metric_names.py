"""Names of tracked metrics contain their group and unit."""

from __future__ import annotations

import pytest

from dualflow.tracking.metric_names import TARGET, metric_name, unit_suffix


@pytest.mark.parametrize(
    ("key", "likelihood", "name"),
    [
        ("nll", True, "train/nll_nats_per_voxel"),
        ("loss", True, "train/loss_nats_per_voxel"),
        ("validation/loss", False, "validation/loss_SUVR"),
        ("validation/mae", True, "validation/mae_SUVR"),
        ("validation/explained_level_2", True, "validation/explained_level_2_fraction"),
        ("bits_per_dim_level_1", True, "train/bits_per_dim_level_1"),
        ("learning_rate", True, "train/learning_rate"),
        ("l1", False, "train/l1_SUVR"),
    ],
)
def test_names(key, likelihood, name):
    """A key gains its group and unit."""
    assert metric_name(key, "SUVR", likelihood=likelihood) == name


@pytest.mark.parametrize(
    ("unit", "suffix"),
    [(TARGET, "_SUVR"), ("%", "_percent"), ("bits/voxel", "_bits_per_voxel"), ("dB", "_dB"), ("", "")],
)
def test_units_of_scores(unit, suffix):
    """A unit is written in the characters that MLflow accepts."""
    assert unit_suffix(unit, "SUVR") == suffix
