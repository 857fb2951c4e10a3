"""PeakLaw: thresholds for people without lesions, from groups with and without lesions."""

import numpy as np
import pytest

from dualflow.inference.peak_law import PeakLaw


def peaks(count, seed=0):
    """Largest of many normal values, as in a map."""
    return np.random.default_rng(seed).normal(size=(count, 4, 2000)).max(axis=2)


def false_flags(law, rate, count=2000):
    fresh = peaks(count, seed=1)
    return np.mean([law.standardised(row).max() > law.threshold(rate) for row in fresh])


@pytest.mark.parametrize("count", [20, 60, 200])
def test_rate_without_lesions(count):
    """The share of fresh people above the threshold is about the rate."""
    shares = [false_flags(PeakLaw.fit(peaks(count, seed)), 0.02, 200) for seed in range(2, 22)]
    assert 0.005 < np.mean(shares) < 0.06


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
def test_lesions_hardly_move_the_threshold(share):
    """Lesions of up to two in five people leave rate and sensitivity about as they are."""
    values = peaks(100)
    values[: int(100 * share), 1] += 6
    law = PeakLaw.fit(values)
    assert law.people >= 95 - 100 * share
    assert false_flags(law, 0.02) < 0.06
    lesion = np.array([3.5, 7.0, 3.5, 3.5])
    assert law.standardised(lesion).max() > law.threshold(0.02)


def test_values_restore_the_law():
    """The law is restored from its JSON values."""
    law = PeakLaw.fit(peaks(30))
    restored = PeakLaw.from_values(law.values())
    assert restored.threshold(0.02) == law.threshold(0.02)
    assert np.array_equal(restored.standardised(peaks(1)[0]), law.standardised(peaks(1)[0]))
