"""What the numbers say in plain words, in both directions: a model that loses is said to lose."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd

from dualflow.evaluation.condition_check import ConditionCheck
from dualflow.modalities import Modality

Entries = dict[str, dict[Hashable, Any]]

# How far a mean coverage may lie from its level and still be called right: an interval that holds the level is not
# enough, for with few subjects it holds nearly anything.
TOLERANCE = 0.05
LEVEL = 80
WAYS = {
    "better": "is better than {other}: its mean absolute error is {size} lower ({low} to {high}, {basis})",
    "worse": "is worse than {other}: its mean absolute error is {size} higher ({low} to {high}, {basis})",
    "undecided": "cannot be told from {other}: its mean absolute error differs by {signed} "
    "({signed_low} to {signed_high}, {basis})",
}
OPPOSITE = {"better": "worse", "worse": "better", "undecided": "undecided"}
LIMITS_ALWAYS = (
    "A synthetic scan shows what is expected of people with this anatomy and this side information. "
    "It cannot show what only the real scan of this person holds, such as a lesion that the MR does not betray.",
    "The numbers describe the group of test subjects, not any one of them; the intervals are over those subjects only.",
    "This is a research tool. It is not a medical device, and nothing here supports a diagnosis or a treatment.",
)
LIMITS_SIMULATED = (
    "The cohort is simulated from a template and a table of regional uptake. Scores on it show that the method works "
    "as intended; they do not carry over to real scans.",
)


def findings(
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
    """Sentences on `model`, computed from the tables of `evaluation.compare`.

    Args:
        summary: from `summarise`; rows of `model` are read.
        differences: from `differences`; every comparison that `model` takes part in is told, whichever side it is on.
        condition: check that the model uses its source, where there is one.
        model: the model this is about.
        row: the target modality, for its unit.
        mean_target: mean of the real target inside the masks, to put errors in proportion.
        blurred: check that the model uses more of its source than a blurred image shows.
        stress: from `learnt.stress_totals`, where samples were drawn to find values that are not finite.
    """
    own: Entries = {str(entry["metric"]): entry for entry in summary[summary["model"] == model].to_dict("records")}
    return [
        *_accuracy(own, model, row, mean_target),
        *_comparisons(differences, model, row),
        *_intervals(own),
        *_condition(condition),
        *_blurred(blurred),
        *_stress(stress, row),
    ]


def limits(*, simulated: bool, subjects: int) -> list[str]:
    """What the report does not mean; `subjects` is the number of test subjects."""
    small = (
        (f"With {subjects} test subjects, differences have to be large to be seen at all.",) if subjects < 30 else ()
    )
    return [*(LIMITS_SIMULATED if simulated else ()), *LIMITS_ALWAYS, *small]


def _accuracy(own: Entries, model: str, row: Modality, mean_target: float) -> list[str]:
    if "mae" not in own:
        return []
    error = own["mae"]
    sentences = [
        f"On {error['subjects']} test subjects, {model} is off by {error['mean']:.3f} {row.unit} per voxel on "
        f"average ({error['low']:.3f} to {error['high']:.3f}): {100 * error['mean'] / mean_target:.1f} % of the mean "
        f"{'uptake' if row.datatype == 'pet' else 'intensity'} in the brain."
    ]
    if {"region_mae", "region_bias"} <= own.keys():
        size, bias = own["region_mae"]["mean"], own["region_bias"]["mean"]
        # A bias smaller than a tenth of the error is not worth a direction.
        way = "with no clear lean" if abs(bias) < 0.1 * size else f"on average {abs(bias):.1f} % too {_side(bias)}"
        sentences.append(f"Averaged over a whole brain region the error is {size:.1f} % of the real value, {way}.")
    return sentences


def _comparisons(differences: pd.DataFrame, model: str, row: Modality) -> list[str]:
    sentences = []
    for _, entry in differences[differences["metric"] == "mae"].iterrows():
        if model not in (entry["model"], entry["reference"]):
            continue
        flip = -1 if entry["reference"] == model else 1
        other = entry["reference"] if flip == 1 else entry["model"]
        gain = flip * entry["gain"]
        low, high = sorted((flip * entry["gain_low"], flip * entry["gain_high"]))
        verdict = OPPOSITE[entry["verdict"]] if flip == -1 else entry["verdict"]
        small, large = sorted((abs(low), abs(high)))
        said = WAYS[verdict].format(
            other=other, size=f"{abs(gain):.4f} {row.unit}", low=f"{small:.4f}", high=f"{large:.4f}",
            basis=f"paired 95 % interval; {_p_value(entry['p_holm'])} after Holm", signed=f"{-gain:+z.4f} {row.unit}",
            signed_low=f"{-high:+z.4f}", signed_high=f"{-low:+z.4f}",
        )  # fmt: skip
        sentences.append(f"{model} {said}.")
    return sentences


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _intervals(own: Entries) -> list[str]:
    sentences = []
    for kind, things in (("voxel", "voxels"), ("region", "region means")):
        name = f"{kind}_coverage_{LEVEL}"
        if name not in own:
            continue
        held, low, high = (float(own[name][column]) for column in ("mean", "low", "high"))
        level = LEVEL / 100
        near, possible = abs(held - level) <= TOLERANCE, low <= level <= high
        if near and possible:
            verdict = "they hold what they promise"
        elif near or possible:
            verdict = "that they hold what they promise is not shown"
        elif held < level:
            verdict = "they are too narrow: the model is more certain than it should be"
        else:
            verdict = "they are too wide: the model is more careful than it need be"
        sentences.append(
            f"The {LEVEL} % intervals contain the real value of {100 * held:.0f} % of the {things} "
            f"({100 * low:.0f} to {100 * high:.0f} %); {verdict}."
        )
    if not sentences:
        sentences.append("The model states no uncertainty that could be checked.")
    return sentences


def _condition(check: ConditionCheck | None) -> list[str]:
    if check is None:
        return []
    verdict = (
        "the model uses the source image"
        if check.low > 0.5
        else "whether the model uses the source image at all is not shown"
    )
    return [
        f"The real target is likelier under the subject's own source image than under another subject's for "
        f"{100 * check.share:.0f} % of {check.subjects} subjects ({100 * check.low:.0f} to {100 * check.high:.0f} %; "
        f"chance is 50 %), on average by {check.gain:z.3f} nats per voxel of the mask: {verdict}."
    ]


def _blurred(check: ConditionCheck | None) -> list[str]:
    if check is None:
        return []
    verdict = (
        "the model uses the detail of the source image"
        if check.low > 0.5
        else "that the model uses more than the outline and large structures is not shown"
    )
    return [
        f"The real target is likelier under the sharp source image than under the same image blurred for "
        f"{100 * check.share:.0f} % of the subjects ({100 * check.low:.0f} to {100 * check.high:.0f} %), on average by "
        f"{check.gain:z.3f} nats per voxel of the mask: {verdict}."
    ]


def _stress(totals: pd.DataFrame | None, row: Modality) -> list[str]:
    if totals is None:
        return []
    return [
        f"{entry['model']} is not safe: {entry['nonfinite_voxels']} voxels of its {entry['samples']} stress samples "
        f"were not finite numbers."
        if entry["nonfinite_voxels"]
        else f"All voxels of {entry['samples']} stress samples of {entry['model']} were finite numbers, at most "
        f"{entry['largest']:.3g} {row.unit} in size."
        for entry in totals.to_dict("records")
    ]


def _side(bias: float) -> str:
    return "high" if bias > 0 else "low"
