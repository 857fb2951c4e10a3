"""Rubin's rules against their terms computed by hand, and their limits."""

import numpy as np
import pytest
from scipy import stats

from dualflow.errors import DataError
from dualflow.imputation.pooling import pool


def test_pooled_values_match_the_published_formulas() -> None:
    estimates, variances, complete = np.array([1.0, 1.4, 0.9, 1.3]), np.array([0.04, 0.05, 0.06, 0.05]), 27.0
    pooled = pool(estimates, variances, complete)
    within, between = 0.05, np.var(estimates, ddof=1)
    total = within + 1.25 * between
    gamma = 1.25 * between / total
    observed = (complete + 1) / (complete + 3) * complete * (1 - gamma)
    freedom = 1 / (gamma**2 / 3 + 1 / observed)
    ratio = 1.25 * between / within
    assert pooled.estimate == pytest.approx(1.15)
    assert pooled.se == pytest.approx(np.sqrt(total))
    assert pooled.df == pytest.approx(freedom)
    assert pooled.fmi == pytest.approx((ratio + 2 / (freedom + 3)) / (1 + ratio))
    low, high = pooled.interval()
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, freedom) * np.sqrt(total))
    assert pooled.p() == pytest.approx(2 * stats.t.sf(1.15 / np.sqrt(total), freedom))


def test_equal_tables_are_one_complete_analysis() -> None:
    pooled = pool(np.full((5, 2), 3.0), np.full((5, 2), 0.25), 12.0)
    assert np.array_equal(pooled.se, [0.5, 0.5])
    assert np.array_equal(pooled.df, [12.0, 12.0])
    assert np.array_equal(pooled.fmi, [0.0, 0.0])


def test_freedom_never_exceeds_that_of_the_complete_data() -> None:
    rng = np.random.default_rng(0)
    pooled = pool(rng.normal(size=(50, 100)), rng.uniform(0.5, 20, (50, 100)), 9.0)
    assert (pooled.df < 9.0).all()


def test_one_table_cannot_be_pooled() -> None:
    with pytest.raises(DataError, match="1 completed tables"):
        pool(np.zeros((1, 3)), np.ones((1, 3)), 5.0)
