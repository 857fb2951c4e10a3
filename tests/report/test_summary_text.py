"""The sentences of the report follow the numbers, in both directions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dualflow.evaluation.condition_check import condition_check
from dualflow.evaluation.statistics import differences, summarise
from dualflow.modalities import MODALITIES
from dualflow.report.summary_text import findings, limits

ROW = MODALITIES["FDG"]


def said(shift: float, *, reference: str = "unet", voxels: float = 0.8, regions: float = 0.8) -> str:
    """Findings on a flow whose MAE is the U-Net's plus `shift`."""
    rng = np.random.default_rng(0)
    hard = 0.05 + 0.02 * rng.random(12)
    rows = [
        {"model": model, "seed": 0, "scan": f"sub-{i:02d}", "mae": hard[i] + extra + 0.001 * rng.normal()}
        | {"region_mae": 4.0, "region_bias": -2.0}
        | ({"voxel_coverage_80": voxels, "region_coverage_80": regions} if model == "flow" else {})
        for model, extra in (("flow", shift), ("unet", 0.0))
        for i in range(12)
    ]
    table = pd.DataFrame(rows)
    check = condition_check(np.zeros(12), np.ones(12))
    summary, against = summarise(table), differences(table, reference)
    return "\n".join(findings(summary, against, check, model="flow", row=ROW, mean_target=1.2))


@pytest.mark.parametrize("reference", ["unet", "flow"])
def test_a_flow_that_loses_is_said_to_lose(reference):
    """Whichever side of the comparison the flow is on, its loss is told as a loss and its win as a win."""
    assert "flow is worse than unet: its mean absolute error is 0.0" in said(0.01, reference=reference)
    assert "SUVR higher" in said(0.01, reference=reference)
    assert "flow is better than unet" in said(-0.01, reference=reference)
    assert "SUVR lower" in said(-0.01, reference=reference)
    assert "flow cannot be told from unet" in said(0.0, reference=reference)


def test_sign_of_an_undecided_difference():
    """The difference is the flow's error minus the other's, and lies inside its stated interval."""
    for reference in ("unet", "flow"):
        sentence = next(line for line in said(0.0002, reference=reference).splitlines() if "cannot be told" in line)
        numbers = [float(word.strip("(,")) for word in sentence.split() if word.strip("(")[0] in "+-" and len(word) > 1]
        assert numbers[1] <= numbers[0] <= numbers[2]
    assert said(0.0002, reference="unet") == said(0.0002, reference="flow")


def test_error_is_put_in_proportion_to_the_uptake():
    """The percentage is MAE over the mean of the real target."""
    first = said(0.0).splitlines()[0]
    error = float(first.split("off by ")[1].split()[0])
    assert f"{100 * error / 1.2:.0f}." in first.split(": ")[1]
    assert "too low" in said(0.0)


def test_intervals_are_judged_per_voxel_and_per_region():
    """Narrow, wide and right intervals are told apart for voxels and regions separately."""
    text = said(0.0, voxels=0.8, regions=0.4)
    assert "80 % of the voxels (80 to 80 %); they hold what they promise" in text
    assert "40 % of the region means (40 to 40 %); they are too narrow" in text
    assert "95 % of the voxels (95 to 95 %); they are too wide" in said(0.0, voxels=0.95)


@pytest.mark.parametrize(
    ("mean", "low", "high", "held"),
    [(0.77, 0.70, 0.84, True), (0.74, 0.60, 0.88, False), (0.88, 0.79, 0.97, False), (0.78, 0.77, 0.79, False)],
)
def test_coverage_must_be_near_its_level_and_agree_with_it(mean, low, high, held):
    """A wide interval around a coverage far from its level is no success, nor is a near one that excludes it."""
    entry = {"model": "m", "metric": "voxel_coverage_80", "mean": mean, "low": low, "high": high, "subjects": 5}
    none = pd.DataFrame(columns=["metric"])
    (sentence,) = findings(pd.DataFrame([entry]), none, None, model="m", row=ROW, mean_target=1.0)
    assert sentence.endswith("; they hold what they promise.") == held
    assert ("is not shown" in sentence) != held


def test_a_model_without_spread_or_condition():
    """No uncertainty is said to be none, and a source that is not used is not said to be used."""
    table = pd.DataFrame({"model": "m", "seed": 0, "scan": ["sub-1", "sub-2"], "mae": [0.1, 0.2]})
    summary = summarise(table, bootstrap=100)
    check = condition_check(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    text = " ".join(findings(summary, differences(table, "m"), check, model="m", row=ROW, mean_target=1.0))
    assert "no uncertainty that could be checked" in text
    assert "not shown" in text


def test_a_blur_that_costs_nothing_is_said_to():
    """Where the blurred source does as well, the use of its detail is not claimed."""
    none = pd.DataFrame(columns=["metric", "model"])
    for values, words in ((np.ones(12), "uses the detail"), (np.zeros(12), "is not shown")):
        check = condition_check(np.zeros(12), values)
        (_, sentence) = findings(none, none, None, model="m", row=ROW, mean_target=1.0, blurred=check)
        assert words in sentence


def test_values_that_are_not_finite_are_said_plainly():
    """A flow with any of them is called unsafe with their number; a sound one has its largest value told."""
    none = pd.DataFrame(columns=["metric", "model"])
    totals = pd.DataFrame(
        {"model": ["a", "b"], "samples": [500, 500], "nonfinite_voxels": [12, 0], "largest": [9.0, 2.5]}
    )
    _, bad, good = findings(none, none, None, model="a", row=ROW, mean_target=1.0, stress=totals)
    assert "a is not safe: 12 voxels of its 500" in bad
    assert "not safe" not in good
    assert "2.5 SUVR" in good


def test_limits_name_the_simulation_only_where_there_is_one():
    """A simulated cohort and a small test set are named; both are silent otherwise."""
    assert any("simulated" in sentence for sentence in limits(simulated=True, subjects=10))
    assert any("10 test subjects" in sentence for sentence in limits(simulated=True, subjects=10))
    real = " ".join(limits(simulated=False, subjects=200))
    assert "simulated" not in real
    assert "200" not in real
    assert "diagnosis" in real


def test_how_much_the_source_is_worth_is_told_with_its_sign():
    """In nats per voxel of the mask, for another's source and for a blurred one, gain or loss."""
    none = pd.DataFrame(columns=["metric", "model"])
    gain, loss = (condition_check(np.zeros(12), np.full(12, size)) for size in (0.25, -0.125))
    (_, other, blurred) = findings(none, none, gain, model="m", row=ROW, mean_target=1.0, blurred=loss)
    assert "on average by 0.250 nats per voxel of the mask" in other
    assert "on average by -0.125 nats per voxel of the mask" in blurred
