"""Names of tracked metrics contain their group and unit."""

from __future__ import annotations

import pytest

from dualflow.tracking.metric_names import TARGET, loss_term, metric_name, unit_suffix


@pytest.mark.parametrize(
    ("key", "loss", "name"),
    [
        ("nll", "", "train/nll_nats_per_voxel"),
        ("loss", "nll", "train/loss_nats_per_voxel"),
        ("validation/loss", "l1", "validation/loss_SUVR"),
        ("validation/loss", "", "validation/loss"),
        ("validation/score", "nll", "validation/score_nats_per_voxel"),
        ("validation/best_score", "nll", "validation/best_score_nats_per_voxel"),
        ("validation/mae", "nll", "validation/mae_SUVR"),
        ("validation/explained_level_2", "nll", "validation/explained_level_2_fraction"),
        ("bits_per_dim_level_1", "", "train/bits_per_dim_level_1"),
        ("learning_rate", "l1", "train/learning_rate"),
        ("l1", "", "train/l1_SUVR"),
        ("elbo", "reconstruction", "train/elbo_nats_per_voxel"),
        ("validation/divergence", "reconstruction", "validation/divergence_nats_per_voxel"),
        ("validation/score", "reconstruction", "validation/score_nats_per_voxel"),
        ("discriminator", "nll", "train/discriminator_fraction_of_variance"),
    ],
)
def test_names(key, loss, name):
    """A key gains its group and unit."""
    assert metric_name(key, "SUVR", loss) == name


@pytest.mark.parametrize(
    ("terms", "term"),
    [
        (["validation/loss", "validation/nll", "validation/l1"], "nll"),
        (["loss", "l1", "gradient_norm"], "l1"),
        (["loss", "elbo"], ""),
        (["loss", "elbo", "reconstruction", "divergence"], "reconstruction"),
    ],
)
def test_a_loss_has_the_unit_of_its_main_term(terms, term):
    """A likelihood's is in nats, that of an image in the target's unit, and others have none."""
    assert loss_term(terms) == term


@pytest.mark.parametrize(
    ("unit", "suffix"),
    [(TARGET, "_SUVR"), ("%", "_percent"), ("bits/voxel", "_bits_per_voxel"), ("dB", "_dB"), ("", "")],
)
def test_units_of_scores(unit, suffix):
    """A unit is written in the characters that MLflow accepts."""
    assert unit_suffix(unit, "SUVR") == suffix
