"""What the benchmark of imputation prints."""

import pandas as pd
import pytest

from dualflow.imputation.joint_outcomes import JOINT
from dualflow.imputation.study_tables import ALL, JACKKNIFE
from dualflow.imputation.validity_text import region_lines, validity_markdown

FIGURES = {"excluded": 5.0, "bias": 0.1, "ratio": 1.0, "found": 60.0, "width": 0.9, "gain": 25.0}


def summary(regions, method=JACKKNIFE, hidden="half", **changes):
    figures = FIGURES | changes
    return pd.DataFrame(
        [
            {"hidden": hidden, "kind": kind, "method": method, "region": f"r{region}", "studies": 40,
             "intervals": 40 if kind == "null" else 160, **figures, **{f"{name}_mc": 0.04 for name in figures}}
            for kind in ("null", "effect")
            for region in range(regions)
        ]
    )  # fmt: skip


def test_every_figure_is_printed_with_its_error():
    both = pd.concat([summary(1, ALL), summary(1), summary(1, hidden="by age")])
    text = validity_markdown(both, both)
    rows = [line for line in text.splitlines() if "±" in line]
    assert len(rows) == 3
    assert all(row.count("±") == 7 for row in rows)
    assert max(map(len, rows)) <= 140
    assert "0.10 ± 0.04" in rows[0]
    assert "PET hidden by age" in text


def test_regions_are_compared_with_chance():
    """Of 40 intervals that are right, 0 to 4 miss; of 160, 4 to 13."""
    regions = pd.concat([summary(3), summary(1, excluded=20.0, width=1.1, gain=10.0)])
    first, second = region_lines(regions, JACKKNIFE)
    assert "5 to 95 % of 4 regions: type I error 5.0 to 17.7 % (by chance alone 0.0 to 10.0 %)" in first
    assert "missed 5.0 to 17.7 % (by chance alone 2.5 to 8.1 %)" in first
    assert "complete cases in 75 % of the regions, and its gain is at least 20 % in 75 % of them" in second


@pytest.mark.parametrize("value", [-0.001, 0.001])
def test_a_gain_that_rounds_to_0_has_no_sign(value):
    text = validity_markdown(summary(1, gain=value), summary(1))
    assert "0 ± 0" in text
    assert "-0 ±" not in text


def test_joint_outcomes_have_a_table():
    joint = [summary(1, method).assign(region=name) for method in (ALL, JACKKNIFE) for name in JOINT[:2]]
    regions = pd.concat([summary(2), *joint])
    text = validity_markdown(summary(1), regions)
    assert "5 to 95 % of 2 regions" in text
    first, second = text.split("Joint outcomes, PET hidden half:")
    assert JOINT[0] not in first
    rows = [line.split("|")[1].strip() for line in second.splitlines() if "±" in line]
    assert rows == [f"{name}: {method}" for name in JOINT[:2] for method in (ALL, JACKKNIFE)]
