"""Bias and limits of agreement."""

import numpy as np
import pytest

from dualflow.evaluation.agreement import agreement


def test_limits_agree_with_an_independent_computation():
    """The limits are those of the textbook's formula with sums, and unknown pairs are left out."""
    rng = np.random.default_rng(0)
    first = rng.normal(1.0, 0.2, (6, 4))
    second = first + rng.normal(0.05, 0.1, (6, 4))
    second[2, 3] = np.nan
    gaps = [b - a for a, b in zip(first.ravel(), second.ravel(), strict=True) if b == b]
    count = len(gaps)
    mean = sum(gaps) / count
    sd = (sum((value - mean) ** 2 for value in gaps) / (count - 1)) ** 0.5
    limits = agreement(first, second)
    assert limits.pairs == count == 23
    assert limits.bias == pytest.approx(mean)
    assert (limits.low, limits.high) == pytest.approx((mean - 1.96 * sd, mean + 1.96 * sd))
    assert limits.outside == sum(abs(value - mean) > 1.96 * sd for value in gaps) / count


def test_one_pair_has_no_limits():
    """A standard deviation needs two differences."""
    assert np.isnan(agreement(np.array([1.0]), np.array([2.0])).bias)
