"""Two models on the same studies differ with less noise than each has."""

import numpy as np
import pandas as pd
import pytest

from dualflow.imputation.group_models import COMPLETE
from dualflow.imputation.joint_outcomes import JOINT
from dualflow.imputation.paired_models import METHODS, compare_imputations, comparison_markdown
from dualflow.imputation.study_tables import ALL, JACKKNIFE, PROPER

NULL = "group=B"
STUDIES, REGIONS = 8, ("r1", "r2", "r3", JOINT[0])


def estimates(scale=1.0, width=1.0, seed=0):
    """Errors with a standard deviation of 1, the same for each seed, and intervals of half-width 2 `width`."""
    values, rows = np.random.default_rng(seed).normal(size=(STUDIES, len(REGIONS), 2)), []
    for method in (ALL, COMPLETE, *METHODS):
        for (study, region, term), value in np.ndenumerate(scale * values):
            low, high = value - 2 * width, value + 2 * width
            rows.append((study, "half", method, REGIONS[region], ("age", NULL)[term], 0.0, value, 1.0, low, high))
    columns = ["study", "hidden", "method", "region", "term", "truth", "estimate", "se", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def test_equal_models_do_not_differ():
    table = compare_imputations(estimates(), estimates(), NULL)
    assert set(table["outcomes"]) == {"regions", "joint"}
    figures = table[["difference", "error", "missed", "gain", "difference_mc", "width_mc", "gain_mc"]]
    np.testing.assert_allclose(figures, 0, atol=1e-9)
    np.testing.assert_allclose(table["width"], 1)


def test_a_more_precise_model_has_a_gain_without_noise():
    """Errors that are smaller by a fifth are worth 56 % more scans, in any 8 studies."""
    table = compare_imputations(estimates(), estimates(scale=0.8, width=0.5), NULL)
    row = table[table["outcomes"] == "regions"].set_index("method").loc[JACKKNIFE]
    assert row["gain"] == pytest.approx(56.25, abs=0.01)
    assert row["gain_mc"] == pytest.approx(0, abs=0.01)
    assert row["width"] == 0.5
    assert row["difference"] == pytest.approx(0.2, abs=0.05)
    assert row["error"] > 0
    assert row["missed"] > 0


def test_every_difference_is_printed_with_its_error():
    text = comparison_markdown(compare_imputations(estimates(), estimates(0.8), NULL), "flow", "linear")
    assert "flow against linear, regions, PET hidden half:" in text
    assert "flow against linear, joint, PET hidden half:" in text
    rows = [line for line in text.splitlines() if f"| {PROPER} " in line]
    assert [row.count("±") for row in rows] == [5, 5]
