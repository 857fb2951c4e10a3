"""Table of a scan's predicted regions."""

import numpy as np
import pytest
from scipy.stats import t

from dualflow.config import PreprocessConfig
from dualflow.imaging.regions import region_map
from dualflow.inference.predict import Prediction
from dualflow.inference.region_table import COLUMNS, region_table

REGIONS = region_map(PreprocessConfig(spacing_mm=8.0, shape=(24, 32, 24)))
MASK = np.ones(REGIONS.labels.shape, bool)


def prediction(samples=12, seed=0):
    """Samples that differ by one number each, around 1.5."""
    rng = np.random.default_rng(seed)
    shifts = rng.normal(size=samples)
    volumes = np.stack([np.full(MASK.shape, 1.5 + shift, np.float32) for shift in shifts])
    mean = np.full(MASK.shape, 1.5, np.float32)
    return Prediction(
        mean, volumes.std(0), region_samples=np.stack([REGIONS.means(one, MASK) for one in volumes])
    ), shifts


def test_regions_and_meta_regions_have_mean_and_interval():
    """A shift of the whole brain is the spread of every row, and the interval is Student's for a new draw."""
    given, shifts = prediction()
    table = region_table(given, MASK, REGIONS)
    assert list(table) == list(COLUMNS)
    assert len(table) > len(REGIONS.names)
    assert {"AD signature", "frontal"} <= set(table["region"])
    np.testing.assert_allclose(table["mean"], 1.5)
    np.testing.assert_allclose(table["sd"], shifts.std(ddof=1), atol=1e-4)
    half = t.ppf(0.975, len(shifts) - 1) * shifts.std(ddof=1) * np.sqrt(1 + 1 / len(shifts))
    np.testing.assert_allclose(table["high"] - table["low"], 2 * half, atol=1e-3)
    np.testing.assert_allclose((table["high"] + table["low"]) / 2, 1.5 + shifts.mean(), atol=1e-3)


@pytest.mark.slow
def test_intervals_hold_a_new_draw_as_often_as_they_say():
    """Also with few samples, for which a normal quantile would be too small."""
    held = []
    for seed in range(300):
        table = region_table(prediction(6, seed)[0], MASK, REGIONS)
        new = 1.5 + np.random.default_rng(10_000 + seed).normal()
        held.append(table["low"][0] <= new <= table["high"][0])
    assert np.mean(held) == pytest.approx(0.95, abs=0.035)


def test_regions_outside_the_mask_are_left_out():
    """A brain that is cut off has no values there."""
    mask = MASK.copy()
    mask[: len(mask) // 2] = False
    table = region_table(prediction()[0], mask, REGIONS)
    assert 0 < len(table) < len(region_table(prediction()[0], MASK, REGIONS))
    assert table["mean"].notna().all()


def test_a_model_without_distribution_has_the_constant_spread():
    """Its meta-regions have a mean but no interval."""
    mean = np.full(MASK.shape, 1.5, np.float32)
    spread = np.full(len(REGIONS.names), 0.1)
    table = region_table(Prediction(mean, np.zeros_like(mean), region_std=spread), MASK, REGIONS)
    groups = table["hemisphere"] == "both"
    np.testing.assert_allclose(table.loc[~groups, "high"] - table.loc[~groups, "low"], 0.392, atol=1e-3)
    assert table.loc[groups, "low"].isna().all()


@pytest.mark.slow
def test_the_interval_of_a_lopsided_law_is_lopsided():
    """A subtype of low uptake, which a symmetric interval would miss far more often than high uptake."""
    below, above = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shifts = rng.normal(size=65) - 4 * (rng.random(65) < 0.15)
        samples = np.repeat(1.5 + shifts[1:, None], len(REGIONS.names), axis=1)
        mean = np.full(MASK.shape, 1.5, np.float32)
        table = region_table(Prediction(mean, np.ones_like(mean), region_samples=samples), MASK, REGIONS)
        below.append(1.5 + shifts[0] < table["low"][0])
        above.append(1.5 + shifts[0] > table["high"][0])
    assert np.mean(below) == pytest.approx(0.025, abs=0.02)
    assert np.mean(above) == pytest.approx(0.025, abs=0.02)


def test_samples_at_another_temperature_have_no_interval():
    """Narrower samples hold a new draw less often than a prediction interval says."""
    table = region_table(prediction()[0], MASK, REGIONS, temperature=0.5)
    assert table[["low", "high"]].isna().all(axis=None)
    assert (table["sd"] > 0).all()
