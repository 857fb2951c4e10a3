"""Names of tracked metrics contain their group and unit."""

from __future__ import annotations

import pytest

from dualflow.tracking.metric_names import metric_name


@pytest.mark.parametrize(
    ("key", "flow", "name"),
    [
        ("nll", True, "train/nll_nats_per_voxel"),
        ("loss", True, "train/loss_nats_per_voxel"),
        ("validation/loss", False, "validation/loss_SUVR"),
        ("validation/mae", True, "validation/mae_SUVR"),
        ("validation/explained_level_2", True, "validation/explained_level_2_fraction"),
        ("bits_per_dim_level_1", True, "train/bits_per_dim_level_1"),
        ("learning_rate", True, "train/learning_rate"),
    ],
)
def test_names(key, flow, name):
    """A key gains its group and unit."""
    assert metric_name(key, "SUVR", flow=flow) == name
