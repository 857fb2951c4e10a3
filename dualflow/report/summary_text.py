"""Sentences that summarise the results, favourable or not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from dualflow.data.markdown import p_statement
from dualflow.evaluation.condition_check import ConditionCheck
from dualflow.evaluation.statistics import MIN_SUBJECTS
from dualflow.modalities import Modality
from dualflow.report.tables import difference_digits

Entries = dict[str, dict[Hashable, Any]]

TOLERANCE = 0.05
"""Largest deviation of a calibrated coverage from its level. Agreement with the confidence interval is not sufficient,
because the interval of few subjects contains almost any level."""
LEVEL = 80
COMPARISONS = {
    "better": "is more accurate than {other}: its mean absolute error is {size} lower ({interval}; {p})",
    "worse": "is less accurate than {other}: its mean absolute error is {size} higher ({interval}; {p})",
    "undecided": "and {other} do not differ clearly: the difference of their mean absolute errors is {signed} "
    "({interval}; {p})",
    "equal": "and {other} have the same mean absolute error in every subject: their point estimates are equal by "
    "construction",
    "few": "and {other}: the difference of their mean absolute errors is {signed} ({interval}; {p}); {people} subjects "
    "are too few to call any difference between so many models clear",
    "no interval": "and {other}: the difference of their mean absolute errors is {signed}; {people} subjects are too "
    "few for an interval or a test",
}
OPPOSITE = {"better": "worse", "worse": "better"}
GENERAL_LIMITATIONS = (
    "A synthetic scan shows the expected image of subjects with this anatomy and side information. It cannot show "
    "findings of an individual that the MR does not predict, such as a lesion visible on the real scan only.",
    "The results describe the group of test subjects, not individual subjects. Intervals reflect the sampling of these "
    "subjects only.",
    "This is a research tool, not a medical device. The results do not support any diagnosis or treatment.",
)
SIMULATION_LIMITATIONS = (
    "The cohort is simulated from a template and a table of regional uptake. Its scores verify the implementation; "
    "they do not predict the performance on real scans.",
)


def summary_sentences(
    summary: pd.DataFrame,
    differences: pd.DataFrame,
    condition: ConditionCheck | None,
    *,
    model: str,
    row: Modality,
    mean_target: float,
    blurred: ConditionCheck | None = None,
    stress: pd.DataFrame | None = None,
) -> list[str]:
    """Summarise the results of `model` in sentences.

    Args:
        summary: from `summarise`; rows of other models are ignored.
        differences: from `differences`; comparisons with `model` as model or reference are reported.
        condition: check against another subject's source, or None.
        model: name of the model.
        row: target modality, for its unit.
        mean_target: mean of the real target inside the masks, the denominator of relative errors.
        blurred: check against the blurred source, or None.
        stress: from `stress_totals`, or None without stress tests.
    """
    metrics: Entries = {str(entry["metric"]): entry for entry in summary[summary["model"] == model].to_dict("records")}
    return [
        *_accuracy(metrics, model, row, mean_target),
        *_comparisons(differences, model, row),
        *_calibration(metrics),
        *_source_use(condition),
        *_detail_use(blurred),
        *_stress(stress, row),
    ]


def limitations(*, simulated: bool, subjects: int) -> list[str]:
    """Limits of interpretation; `subjects` is the number of test subjects."""
    small = (f"With {_people(subjects)}, only large differences are detectable.",) if subjects < 30 else ()
    return [*(SIMULATION_LIMITATIONS if simulated else ()), *GENERAL_LIMITATIONS, *small]


def _accuracy(metrics: Entries, model: str, row: Modality, mean_target: float) -> list[str]:
    if "mae" not in metrics:
        return []
    error, quantity = metrics["mae"], "uptake" if row.datatype == "pet" else "intensity"
    sentences = [
        f"On {_people(error['subjects'])}, the mean absolute error of {model} is {error['mean']:.3f} {row.unit} "
        f"per voxel{_interval(error)}, "
        f"{100 * error['mean'] / mean_target:.1f} % of the mean {quantity} in the brain."
    ]
    if {"region_mae", "region_bias"} <= metrics.keys():
        size, bias = metrics["region_mae"]["mean"], metrics["region_bias"]["mean"]
        # A bias below a tenth of the error has no reliable direction.
        direction = f"on average they are {abs(bias):.1f} % too {'high' if bias > 0 else 'low'}"
        if abs(bias) < 0.1 * size:
            direction = "they show no clear bias"
        sentences.append(f"The mean absolute error of region means is {size:.1f} % of the real value; {direction}.")
    return sentences


def _comparisons(differences: pd.DataFrame, model: str, row: Modality) -> list[str]:
    sentences = []
    for entry in differences[differences["metric"] == "mae"].to_dict("records"):
        if model not in (entry["model"], entry["reference"]):
            continue
        flip = -1 if entry["reference"] == model else 1
        other_model = entry["reference"] if flip == 1 else entry["model"]
        gain = flip * entry["gain"]
        low, high = sorted((flip * entry["gain_low"], flip * entry["gain_high"]))
        verdict = OPPOSITE.get(entry["verdict"], entry["verdict"]) if flip == -1 else entry["verdict"]
        if verdict == "few" and entry["subjects"] < MIN_SUBJECTS:
            verdict = "no interval"
        small, large = sorted((abs(low), abs(high)))
        digits = difference_digits(entry, 4)
        clear = verdict in OPPOSITE
        ends = f"{small:.{digits}f} to {large:.{digits}f}" if clear else f"{-high:+z.{digits}f} to {-low:+z.{digits}f}"
        text = COMPARISONS[verdict].format(
            other=other_model,
            size=f"{abs(gain):.{digits}f} {row.unit}",
            signed=f"{-gain:+z.4f} {row.unit}",
            interval=f"paired 95 % bootstrap interval {ends}",
            p=f"Wilcoxon signed-rank {p_statement(entry['p_holm'])}, Holm-adjusted",
            people=entry["subjects"],
        )
        sentences.append(f"{model} {text}.")
    return sentences


def _interval(entry: Mapping[Hashable, Any]) -> str:
    """The interval of a mean in parentheses; empty for too few subjects."""
    few = entry["subjects"] < MIN_SUBJECTS
    return "" if few else f" (95 % bootstrap interval {entry['low']:.3f} to {entry['high']:.3f})"


def _calibration(metrics: Entries) -> list[str]:
    sentences = []
    for kind, quantities in (("voxel", "voxels"), ("region", "region means")):
        name = f"{kind}_coverage_{LEVEL}"
        if name not in metrics:
            continue
        coverage, low, high = (float(metrics[name][column]) for column in ("mean", "low", "high"))
        level = LEVEL / 100
        near, consistent = abs(coverage - level) <= TOLERANCE, low <= level <= high
        few = int(metrics[name]["subjects"]) < MIN_SUBJECTS
        if few:
            verdict = f"{metrics[name]['subjects']} subjects are too few to judge their calibration"
        elif near and consistent:
            verdict = f"this is consistent with {LEVEL} %"
        elif near or consistent:
            verdict = "the evidence for their calibration is inconclusive"
        elif coverage < level:
            verdict = "they are too narrow (over-confident)"
        else:
            verdict = "they are too wide (under-confident)"
        interval = "" if few else f" (95 % bootstrap interval {100 * low:.0f} to {100 * high:.0f} %)"
        sentences.append(
            f"The {LEVEL} % intervals contain the real value of {100 * coverage:.0f} % of the {quantities}{interval}; "
            f"{verdict}."
        )
    if not sentences:
        sentences.append("The model provides no uncertainty to evaluate.")
    return sentences


def _source_use(check: ConditionCheck | None) -> list[str]:
    if check is None:
        return []
    evidence = _evidence(check, "the model uses the source image", "the model uses the source image")
    return [
        f"The real target is likelier under the true source image than under another subject's for "
        f"{100 * check.share:.0f} % of {check.subjects} subjects ({_wilson(check)}; chance level 50 %), on average by "
        f"{check.gain:z.3f} nats per voxel of the mask: {evidence}."
    ]


def _detail_use(check: ConditionCheck | None) -> list[str]:
    if check is None:
        return []
    more = "the model uses more than the outline and large structures"
    evidence = _evidence(check, "the model uses the detail of the source image", more)
    return [
        f"The real target is likelier under the sharp source image than under its blurred version for "
        f"{100 * check.share:.0f} % of the subjects ({_wilson(check)}), on average by "
        f"{check.gain:z.3f} nats per voxel of the mask: {evidence}."
    ]


def _evidence(check: ConditionCheck, if_clear: str, sought: str) -> str:
    few = "" if check.subjects >= MIN_SUBJECTS else "; there are too few subjects to judge"
    return if_clear if check.clear else f"there is no evidence that {sought}{few}"


def _people(count: int) -> str:
    return "1 test subject" if count == 1 else f"{count} test subjects"


def _wilson(check: ConditionCheck) -> str:
    return f"95 % Wilson interval {100 * check.low:.0f} to {100 * check.high:.0f} %"


def _stress(totals: pd.DataFrame | None, row: Modality) -> list[str]:
    if totals is None:
        return []
    return [
        f"{entry['model']} is numerically unstable: {entry['nonfinite_voxels']} voxels of its {entry['samples']} "
        f"stress samples are not finite."
        if entry["nonfinite_voxels"]
        else f"All voxels of {entry['samples']} stress samples of {entry['model']} are finite; the largest absolute "
        f"value is {entry['largest']:.3g} {row.unit}."
        for entry in totals.to_dict("records")
    ]
