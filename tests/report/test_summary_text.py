"""The sentences of the report agree with the numbers, favourable or not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dualflow.evaluation.condition_check import condition_check
from dualflow.evaluation.statistics import differences, summarise
from dualflow.modalities import MODALITIES
from dualflow.report.summary_text import limitations, summary_sentences

ROW = MODALITIES["FDG"]


def summary(shift: float, *, reference: str = "unet", voxels: float = 0.8, regions: float = 0.8) -> str:
    """Sentences on a flow whose MAE is the U-Net's plus `shift`."""
    rng = np.random.default_rng(0)
    difficulty = 0.05 + 0.02 * rng.random(12)
    rows = [
        {"model": model, "seed": 0, "scan": f"sub-{i:02d}", "mae": difficulty[i] + extra + 0.001 * rng.normal()}
        | {"region_mae": 4.0, "region_bias": -2.0}
        | ({"voxel_coverage_80": voxels, "region_coverage_80": regions} if model == "flow" else {})
        for model, extra in (("flow", shift), ("unet", 0.0))
        for i in range(12)
    ]
    table = pd.DataFrame(rows)
    check = condition_check(np.zeros(12), np.ones(12))
    means, paired = summarise(table), differences(table, reference)
    return "\n".join(summary_sentences(means, paired, check, model="flow", row=ROW, mean_target=1.2))


@pytest.mark.parametrize("reference", ["unet", "flow"])
def test_a_flow_that_loses_is_reported_as_less_accurate(reference):
    """Better and worse are reported correctly, whether the flow is the model or the reference."""
    assert "flow is less accurate than unet: its mean absolute error is 0.0" in summary(0.01, reference=reference)
    assert "SUVR higher" in summary(0.01, reference=reference)
    assert "flow is more accurate than unet" in summary(-0.01, reference=reference)
    assert "SUVR lower" in summary(-0.01, reference=reference)
    assert "flow and unet do not differ clearly" in summary(0.0, reference=reference)


def test_a_clear_difference_is_not_printed_as_zero():
    """Of the interval's ends the one near 0 has a digit, and so has the size."""
    table = pd.DataFrame(
        {"model": model, "seed": 0, "scan": f"sub-{i:02d}", "mae": 0.05 + 0.01 * i + extra * (1 + 0.01 * i)}
        for model, extra in (("flow", 2e-6), ("unet", 0.0))
        for i in range(12)
    )
    sentences = summary_sentences(
        summarise(table), differences(table, "unet"), None, model="flow", row=ROW, mean_target=1.2
    )
    assert "is 0.0000021 SUVR higher (paired 95 % bootstrap interval 0.0000021 to 0.0000022;" in "\n".join(sentences)


def test_sign_of_an_undecided_difference():
    """The difference is the flow's error minus the U-Net's, and lies inside its interval."""
    for reference in ("unet", "flow"):
        sentence = next(line for line in summary(0.0002, reference=reference).splitlines() if "do not differ" in line)
        numbers = [
            float(word.strip("(,;")) for word in sentence.split() if word.strip("(")[0] in "+-" and len(word) > 1
        ]
        assert numbers[1] <= numbers[0] <= numbers[2]
    assert summary(0.0002, reference="unet") == summary(0.0002, reference="flow")


def test_equal_errors_are_named_as_such():
    """A flow and the mean model that is its point estimate have the same error, not an undecided difference."""
    rows = [
        {"model": model, "seed": 0, "scan": f"sub-{i}", "mae": 0.1 + 0.01 * i}
        for model in ("flow", "local")
        for i in range(4)
    ]
    table = pd.DataFrame(rows)
    means, paired = summarise(table), differences(table, "flow")
    text = "\n".join(summary_sentences(means, paired, None, model="flow", row=ROW, mean_target=1.2))
    assert "flow and local have the same mean absolute error in every subject" in text


def test_error_is_put_in_proportion_to_the_uptake():
    """The percentage is the MAE over the mean of the real target."""
    first = summary(0.0).splitlines()[0]
    error = float(first.split(" is ")[1].split()[0])
    assert f"{100 * error / 1.2:.0f}." in first.split("), ")[1]
    assert "too low" in summary(0.0)


def test_intervals_are_judged_per_voxel_and_per_region():
    """Narrow, wide and calibrated intervals are distinguished separately for voxels and regions."""
    text = summary(0.0, voxels=0.8, regions=0.4)
    assert "80 % of the voxels (95 % bootstrap interval 80 to 80 %); this is consistent with 80 %" in text
    assert "40 % of the region means (95 % bootstrap interval 40 to 40 %); they are too narrow" in text
    assert "95 % of the voxels (95 % bootstrap interval 95 to 95 %); they are too wide" in summary(0.0, voxels=0.95)


@pytest.mark.parametrize(
    ("mean", "low", "high", "calibrated"),
    [(0.77, 0.70, 0.84, True), (0.74, 0.60, 0.88, False), (0.88, 0.79, 0.97, False), (0.78, 0.77, 0.79, False)],
)
def test_coverage_must_be_near_its_level_and_agree_with_it(mean, low, high, calibrated):
    """Calibration needs a coverage near its level and a confidence interval that contains the level."""
    entry = {"model": "m", "metric": "voxel_coverage_80", "mean": mean, "low": low, "high": high, "subjects": 8}
    none = pd.DataFrame(columns=["metric"])
    (sentence,) = summary_sentences(pd.DataFrame([entry]), none, None, model="m", row=ROW, mean_target=1.0)
    assert sentence.endswith("; this is consistent with 80 %.") == calibrated
    assert ("is inconclusive" in sentence) != calibrated


def test_few_people_have_no_interval():
    """With five people a difference is stated without interval, p-value or verdict."""
    scans = [f"sub-{i}" for i in range(5)]
    errors = {"m": [0.1, 0.2, 0.3, 0.4, 0.5], "other": [0.2, 0.3, 0.4, 0.5, 0.6]}
    rows = [
        {"model": model, "seed": 0, "scan": scan, "mae": value, "voxel_coverage_80": 0.8}
        for model, values in errors.items()
        for scan, value in zip(scans, values, strict=True)
    ]
    table = pd.DataFrame(rows)
    means, paired = summarise(table, bootstrap=100), differences(table, "other")
    text = " ".join(summary_sentences(means, paired, None, model="m", row=ROW, mean_target=1.0))
    assert "errors is -0.1000 SUVR; 5 subjects are too few for an interval or a test" in text
    assert "80 % of the voxels; 5 subjects are too few to judge their calibration" in text
    assert "95 %" not in text


def test_six_people_are_too_few_for_two_comparisons():
    """The difference has an interval and a p-value, and is not said to be unclear."""
    table = pd.DataFrame(
        {"model": model, "seed": 0, "scan": f"sub-{i}", "mae": extra + 0.1 * i + 0.001 * i * extra}
        for model, extra in (("m", 0.0), ("first", 0.2), ("second", 0.4))
        for i in range(6)
    )
    means, paired = summarise(table, bootstrap=100), differences(table, "m")
    text = "\n".join(summary_sentences(means, paired, None, model="m", row=ROW, mean_target=1.0))
    assert "m and first: the difference of their mean absolute errors is -0.2005 SUVR (paired 95 % bootstrap" in text
    assert "6 subjects are too few to call any difference between so many models clear" in text
    assert "do not differ clearly" not in text


def test_a_model_without_spread_or_condition():
    """Missing uncertainty is stated, and use of the source is not claimed without evidence."""
    table = pd.DataFrame({"model": "m", "seed": 0, "scan": ["sub-1", "sub-2"], "mae": [0.1, 0.2]})
    means = summarise(table, bootstrap=100)
    check = condition_check(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    text = " ".join(summary_sentences(means, differences(table, "m"), check, model="m", row=ROW, mean_target=1.0))
    assert "provides no uncertainty to evaluate" in text
    assert "no evidence that the model uses the source image; there are too few subjects to judge" in text


def test_use_of_detail_needs_a_loss_under_the_blur():
    """If the blurred source does as well, use of its detail is not claimed."""
    none = pd.DataFrame(columns=["metric", "model"])
    for values, words in (
        (np.ones(12), "uses the detail"),
        (np.zeros(12), "no evidence that the model uses more than"),
    ):
        check = condition_check(np.zeros(12), values)
        (_, sentence) = summary_sentences(none, none, None, model="m", row=ROW, mean_target=1.0, blurred=check)
        assert words in sentence


def test_non_finite_voxels_are_reported():
    """A flow with non-finite voxels is called unstable with their number; a stable one states its largest value."""
    none = pd.DataFrame(columns=["metric", "model"])
    totals = pd.DataFrame(
        {"model": ["a", "b"], "samples": [500, 500], "nonfinite_voxels": [12, 0], "largest": [9.0, 2.5]}
    )
    _, bad, good = summary_sentences(none, none, None, model="a", row=ROW, mean_target=1.0, stress=totals)
    assert "a is numerically unstable: 12 voxels of its 500" in bad
    assert "unstable" not in good
    assert "2.5 SUVR" in good


def test_limitations_name_the_simulation_only_for_a_simulated_cohort():
    """Limitations name a simulated cohort and a small test set, and neither otherwise."""
    assert any("simulated" in sentence for sentence in limitations(simulated=True, subjects=10))
    assert any("10 test subjects" in sentence for sentence in limitations(simulated=True, subjects=10))
    real = " ".join(limitations(simulated=False, subjects=200))
    assert "simulated" not in real
    assert "200" not in real
    assert "diagnosis" in real


def test_the_gain_of_the_source_is_reported_with_its_sign():
    """The gain over another subject's and over a blurred source is in nats per voxel of the mask, with its sign."""
    none = pd.DataFrame(columns=["metric", "model"])
    gain, loss = (condition_check(np.zeros(12), np.full(12, size)) for size in (0.25, -0.125))
    (_, other, blurred) = summary_sentences(none, none, gain, model="m", row=ROW, mean_target=1.0, blurred=loss)
    assert "on average by 0.250 nats per voxel of the mask" in other
    assert "on average by -0.125 nats per voxel of the mask" in blurred


def test_few_subjects_have_no_interval_and_no_verdict_on_calibration():
    """Below six subjects no interval is printed, because none that short can be trusted."""
    rows = [
        {"model": model, "seed": 0, "scan": f"sub-{i}", "mae": 0.1 + 0.01 * i + extra, "voxel_coverage_80": 0.8}
        for model, extra in (("flow", 0.0), ("unet", 0.005))
        for i in range(5)
    ]
    table = pd.DataFrame(rows)
    means, paired = summarise(table, bootstrap=50), differences(table, "flow", bootstrap=50)
    text = "\n".join(summary_sentences(means, paired, None, model="flow", row=ROW, mean_target=1.2))
    assert "95 % interval" not in text
    assert "bootstrap interval" not in text
    assert "5 subjects are too few to judge their calibration" in text
