"""Intervals of the distribution that samples stand for."""

import numpy as np
import pytest

from dualflow.inference.ensemble import Ensemble


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("count", [16, 32, 96])
def test_each_end_has_half_of_the_misses(level, count):
    """Also where a subtype of 15 % makes the law lopsided, once there are samples enough to see it."""
    rng = np.random.default_rng(0)
    laws = {"normal": lambda *size: rng.normal(size=size)}
    if count > 16:
        laws["subtype"] = lambda *size: rng.normal(size=size) - 4 * (rng.random(size) < 0.15)
    for draw in laws.values():
        low, high = Ensemble(np.sort(draw(count, 40_000), axis=0)).interval(level)
        truth = draw(40_000)
        expected = (1 - level) / 2
        assert (truth < low).mean() == pytest.approx(expected, abs=0.012)
        assert (truth > high).mean() == pytest.approx(expected, abs=0.012)
