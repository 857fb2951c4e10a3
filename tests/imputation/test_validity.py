"""The summary of simulated studies tells valid from overconfident methods."""

import numpy as np
import pandas as pd
import pytest

from dualflow.imputation.group_models import COMPLETE
from dualflow.imputation.joint_outcomes import JOINT
from dualflow.imputation.study_tables import ALL, PROPER, SINGLE
from dualflow.imputation.validity import summarise_regions, summarise_validity

NULL = "group=B"


def estimates(method, error, se, studies=200, seed=0, bias=0.0):
    """Estimates of one region, of an effect and a null term, with a standard error and the spread `error`."""
    rng, rows = np.random.default_rng(seed), []
    for term, truth in (("age", 0.3), (NULL, 0.0)):
        values = truth + bias + rng.normal(0, error, studies)
        rows.append(
            pd.DataFrame(
                {
                    "study": range(studies), "hidden": "half", "method": method, "region": "r", "term": term,
                    "truth": truth, "estimate": values, "se": se, "low": values - 1.96 * se, "high": values + 1.96 * se,
                }
            )
        )  # fmt: skip
    return pd.concat(rows)


@pytest.fixture(scope="module")
def table():
    return pd.concat(
        [
            estimates(ALL, 0.14, 0.14, seed=3),
            estimates(COMPLETE, 0.2, 0.2),
            estimates(PROPER, 0.15, 0.15, seed=1),
            estimates(SINGLE, 0.2, 0.1, seed=2, bias=0.1),
        ],
        ignore_index=True,
    )


def test_the_summary_tells_valid_from_overconfident_methods(table):
    summary = summarise_validity(table, NULL)
    assert set(summary["kind"]) == {"null", "effect"}
    summary = summary[summary["kind"] == "effect"].set_index("method")
    assert summary.loc[COMPLETE, "excluded"] == pytest.approx(5, abs=4)
    assert summary.loc[SINGLE, "excluded"] > 25
    assert summary.loc[PROPER, "width"] == pytest.approx(0.75)
    assert summary.loc[PROPER, "gain"] == pytest.approx(78, abs=35)
    assert summary.loc[SINGLE, "bias"] == pytest.approx(1.0, abs=0.35)
    assert summary.loc[SINGLE, "ratio"] == pytest.approx(0.5, abs=0.1)
    assert summary.loc[PROPER, "bias"] < 0.2
    assert summary.loc[COMPLETE, "found"] == pytest.approx(32, abs=8)
    assert summary.loc[PROPER, "found"] == pytest.approx(52, abs=8)
    assert summary.loc[COMPLETE, "excluded_mc"] == pytest.approx(1.5, abs=0.8)
    assert summary.loc[PROPER, "bias_mc"] == pytest.approx(0.1, abs=0.06)


def test_regions_are_summarised_one_by_one(table):
    """One row per region, with the statistics of a summary of that region alone."""
    other = table.assign(region="s", estimate=table["estimate"] + 1, low=table["low"] + 1, high=table["high"] + 1)
    regions = summarise_regions(pd.concat([table, other]), NULL)
    one, shifted = (regions[regions["region"] == name].set_index(["kind", "method"]) for name in "rs")
    alone = summarise_validity(table, NULL).set_index(["kind", "method"])
    columns = ["excluded", "bias", "width", "width_mc", "gain", "gain_mc", "intervals"]
    pd.testing.assert_frame_equal(one[columns], alone[columns])
    assert (shifted["excluded"] > 90).all()
    assert (regions["intervals"] == 200).all()


def test_joint_outcomes_count_in_their_own_rows_alone(table):
    """An outcome of another unit changes neither the summary of the regions nor what counts as a large effect."""
    joint = table.assign(region=JOINT[1], truth=10 * table["truth"])
    both = pd.concat([table, joint])
    pd.testing.assert_frame_equal(summarise_validity(both, NULL), summarise_validity(table, NULL))
    regions = summarise_regions(both, NULL).set_index(["region", "kind", "method"]).sort_index()
    assert np.isnan(regions.loc[(JOINT[1], "effect", PROPER), "found"])
    assert regions.loc[("r", "effect", PROPER), "found"] == pytest.approx(52, abs=8)
    assert regions.loc[(JOINT[1], "effect", COMPLETE), "excluded"] > 90
