"""The summary of simulated studies tells valid from overconfident methods."""

import numpy as np
import pandas as pd
import pytest

from dualflow.imputation.study_tables import PROPER, SINGLE
from dualflow.imputation.validity import COMPLETE, summarise_validity


def estimates(method, error, se, studies=200, seed=0):
    """Estimates of one region and term with a standard error and the spread `error`."""
    values = 0.3 + np.random.default_rng(seed).normal(0, error, studies)
    return pd.DataFrame(
        {
            "study": range(studies), "hidden": "half", "method": method, "region": "r", "term": "age", "truth": 0.3,
            "estimate": values, "se": se, "low": values - 1.96 * se, "high": values + 1.96 * se,
        }
    )  # fmt: skip


def test_the_summary_tells_valid_from_overconfident_methods():
    table = pd.concat(
        [estimates(COMPLETE, 0.2, 0.2), estimates(PROPER, 0.15, 0.15, seed=1), estimates(SINGLE, 0.2, 0.1, seed=2)]
    )
    table["estimate"] = table["estimate"].where(table["method"] != SINGLE, table["estimate"] + 0.1)
    summary = summarise_validity(table, null="group").set_index("method")
    assert summary.loc[COMPLETE, "excluded"] == pytest.approx(5, abs=4)
    assert summary.loc[SINGLE, "excluded"] > 25
    assert summary.loc[PROPER, "width"] == pytest.approx(0.75)
    assert summary.loc[PROPER, "gain"] == pytest.approx(78, abs=35)
    assert summary.loc[SINGLE, "bias"] == pytest.approx(1.0, abs=0.35)
    assert summary.loc[PROPER, "bias"] < 0.2
    assert summary.loc[COMPLETE, "found"] == pytest.approx(32, abs=8)
    assert summary.loc[PROPER, "found"] == pytest.approx(52, abs=8)
    assert summary.loc[COMPLETE, "excluded_mc"] == pytest.approx(1.5, abs=0.8)
