"""Verdict on a scan: ok, review, or refused, with the reasons and every figure behind them.

The preprocessed sources, the registration and the side information are judged before the conversion, the prediction
after it. Each check compares figures with what the model's training scans have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.special import poch

from dualflow.arrays import Bools, Singles
from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.imaging.input_figures import TURNED_DEG
from dualflow.inference.predict import Prediction
from dualflow.inference.training_reference import SAMPLES, FigureRanges, Reference, output_figures
from dualflow.inference.typicality import Score

COARSER = (2.0, 4.0)
"""Largest voxel edge, relative to the training scans', from which a scan is reviewed and refused."""
BEYOND_SD = 2.0
"""Training standard deviations beyond the training range from which a side value is refused."""


class Outcome(StrEnum):
    """What to do with a scan; a later one outranks an earlier one."""

    OK = "ok"
    REVIEW = "review"
    REFUSED = "refused"


class Finding(NamedTuple):
    """A reason that a check found."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on a scan.

    Attributes:
        findings: what the checks found; none if the scan is ok.
        figures: every figure that was compared, by name.
        lesion_maps: signed deviation `[D, H, W]` of each source that it led to a finding for, by modality.
    """

    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    lesion_maps: Mapping[str, Singles] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """The gravest outcome of the findings."""
        return max((finding.outcome for finding in self.findings), key=list(Outcome).index, default=Outcome.OK)

    @property
    def reasons(self) -> list[str]:
        """Reasons, the gravest first."""
        ranked = sorted(self.findings, key=lambda finding: -list(Outcome).index(finding.outcome))
        return [finding.reason for finding in ranked]

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON: `verdict`, `reasons`, `figures` with null for unknown ones."""
        figures = {name: round(value, 4) if np.isfinite(value) else None for name, value in self.figures.items()}
        return {"verdict": self.outcome.value, "reasons": self.reasons, "figures": figures}

    def __or__(self, other: Self) -> Verdict:
        """Both verdicts together."""
        return Verdict(
            (*self.findings, *other.findings),
            {**self.figures, **other.figures},
            {**self.lesion_maps, **other.lesion_maps},
        )


def judge_input(
    reference: Reference | None,
    encoder: SideEncoder,
    sources: Mapping[str, Singles],
    mask: Bools,
    figures: Mapping[str, float],
    side: Mapping[str, Any],
) -> Verdict:
    """Judge a preprocessed scan before its conversion.

    Args:
        reference: what the training scans look like; None, as of a model without one, leaves out its checks.
        encoder: the model's side columns.
        sources: preprocessed sources `[D, H, W]` by modality, the main one first.
        mask: brain `[D, H, W]`.
        figures: `imaging.input_figures` of the scan.
        side: raw side values by column; None or NaN if unknown.
    """
    header = (*_turned(figures), *_side_findings(encoder, side))
    if reference is None:
        return Verdict(header, figures)
    verdict, main = Verdict((*header, *_resolution(reference, figures))), next(iter(sources))
    for name, typicality in reference.typicality.items():
        score = typicality.score(sources[name], mask)
        further = "" if name == main else name
        detectors = {_named(f"z_{part}", further): z for part, z in score.z.items()}
        # In a scan of another kind, the lesion map has no meaning.
        maps = {name: score.lesion_map} if score.flagged and not score.refused else {}
        verdict |= _judge_score(score, further) | Verdict((), detectors, maps)
    misfit = _unusual(reference.registration, figures, "", "of its registration with the template")
    return verdict | Verdict(tuple(misfit), figures)


def _judge_score(score: Score, source: str) -> Verdict:
    """Judge a source by its score; the main one has no name."""
    findings = [_typicality(score, source)] if score.refused else [_lesion(score, source)] if score.flagged else []
    figures = {
        "typicality": score.typicality,
        "typicality_threshold": score.threshold,
        "lesion": score.lesion,
        "lesion_threshold": score.lesion_threshold,
    }
    return Verdict(tuple(findings), {_named(name, source): value for name, value in figures.items()})


def _named(figure: str, source: str) -> str:
    """The name of a figure of a source, such as `typicality_FLAIR_threshold`; the main one's is the figure's own."""
    what, *rest = figure.split("_", 1)
    return "_".join([what, source, *rest]) if source else figure


def judge_output(
    reference: Reference | None,
    prediction: Prediction,
    mask: Bools,
    unit: str,
    *,
    samples: int = SAMPLES,
    temperature: float = 1.0,
) -> Verdict:
    """Judge a prediction inside the mask `[D, H, W]`; an unusual one is to be reviewed.

    Args:
        reference: what predictions of the training scans look like, by SAMPLES samples at temperature 1.
        prediction: the prediction.
        mask: brain `[D, H, W]`.
        unit: unit of the target.
        samples: number of samples that the standard deviations are of.
        temperature: their temperature; the spread at another one than 1 is not judged.
    """
    figures = output_figures(prediction, mask)
    named = {f"output_{name}": value for name, value in figures.items()}
    if reference is None:
        return Verdict((), named)
    comparable = figures["spread"] * _expected_sd(SAMPLES) / _expected_sd(samples) if temperature == 1 else np.nan
    unusual = _unusual(reference.output, figures | {"spread": float(comparable)}, unit, "of the prediction")
    return Verdict(tuple(unusual), named)


def _expected_sd(count: int) -> float:
    """Expected standard deviation of a sample of a standard normal law; it is below 1, and far below it for few."""
    return float(np.sqrt(2 / (count - 1)) * poch((count - 1) / 2, 0.5))


def _unusual(ranges: FigureRanges, figures: Mapping[str, float], unit: str, what: str) -> Iterator[Finding]:
    """The figure that lies farthest out, if it is unusual."""
    distances = ranges.distances(figures)
    worst = max(distances, key=lambda name: distances[name], default="")
    if worst and distances[worst] > ranges.threshold:
        low, high = ranges.usual(worst)
        value, least, most = _distinct(figures[worst], low, high, spec=".{}g", digits=3)
        expected = f"{least} to {most}"
        if not np.isfinite(low):
            expected = f"at most {most}"
        elif not np.isfinite(high):
            expected = f"at least {least}"
        value = f"{value} {unit}".rstrip()
        yield Finding(Outcome.REVIEW, f"{_FIGURE_NAMES[worst]} {what} is {value}, expected {expected}")


def _distinct(value: float, *limits: float, spec: str = ".{}f", digits: int = 1) -> list[str]:
    """A value and its limits as text, with as many digits, from `digits` on, as tell the value from the limits."""
    for count in range(digits, digits + 6):
        texts = [format(number, spec.format(count)) for number in (value, *limits)]
        if texts[0] not in texts[1:]:
            break
    return texts


_FIGURE_NAMES = {
    "mean": "mean",
    "p01": "1st percentile",
    "p99": "99th percentile",
    "spread": "mean standard deviation",
    "template_mi": "mutual information in nats",
    "template_dice": "Dice of the brains",
    "coverage": "share of the template's brain in view",
    "mask_missing": "missing share of the brain",
    "mask_outside": "share of the brain outside the template's",
    "mask_stretch": "stretch",
}
_DETECTORS = {
    "quantiles": "the histogram of its intensities",
    "texture": "its texture: noise, blur, gaps or jumps between slices",
    "mask": "size or position of its brain",
    "local_contrast": "its contrast within small blocks",
    "contrast": "its contrast between tissues",
}


def _typicality(score: Score, source: str) -> Finding:
    names = [name for name, value in score.z.items() if value > score.threshold]
    worst = sorted(names, key=lambda name: -score.z[name])[:3]
    what = ", ".join(_DETECTORS[name] for name in worst)
    value, threshold = _distinct(score.typicality, score.threshold)
    return Finding(
        Outcome.REFUSED,
        f"{f'its {source}' if source else 'it'} is unlike the training scans in {what} "
        f"(typicality score {value}, expected at most {threshold}): check that it is an undamaged "
        f"{f'{source} scan' if source else 'scan of the source modality'}",
    )


def _lesion(score: Score, source: str) -> Finding:
    value, threshold = _distinct(score.lesion, score.lesion_threshold)
    return Finding(
        Outcome.REVIEW,
        f"a part of the brain{f' in its {source}' if source else ''} is unlike the training scans (lesion score "
        f"{value}, expected at most {threshold}), shown by desc-deviation{f'_{source}' if source else ''}",
    )


def _turned(figures: Mapping[str, float]) -> Iterator[Finding]:
    angle = figures.get("rotation_deg", np.nan)
    if angle > TURNED_DEG:
        yield Finding(
            Outcome.REFUSED,
            f"the head is turned by {angle:.0f} degrees from its header's orientation, expected at most "
            f"{TURNED_DEG:.0f}, so left and right cannot be trusted: correct the orientation in the header",
        )


def _resolution(reference: Reference, figures: Mapping[str, float]) -> Iterator[Finding]:
    edge, (review, refuse) = figures.get("voxel_mm", np.nan), (factor * reference.voxel_mm for factor in COARSER)
    if edge > review:
        yield Finding(
            Outcome.REFUSED if edge > refuse else Outcome.REVIEW,
            f"its voxels measure up to {edge:.1f} mm, those of the training scans up to {reference.voxel_mm:.1f} mm",
        )


def _side_findings(encoder: SideEncoder, side: Mapping[str, Any]) -> Iterator[Finding]:
    for column in encoder.columns:
        value = side.get(column.name)
        if value is None or value != value:
            continue
        yield from _SIDE_CHECKS[type(column)](column, value)


def _range(column: Continuous, value: Any) -> Iterator[Finding]:
    low, high = column.low, column.high
    if low is None or high is None:  # the value may be a level: training does not tell whether the column has numbers
        return
    number = float(value)
    if low <= number <= high:
        return
    beyond = max(low - number, number - high)
    yield Finding(
        Outcome.REFUSED if beyond > BEYOND_SD * column.sd else Outcome.REVIEW,
        f"{column.name} is {number:g}, in the training scans {low:g} to {high:g}",
    )


def _level(column: Categorical, value: Any) -> Iterator[Finding]:
    if value not in column.levels:
        yield Finding(
            Outcome.REVIEW,
            f"{column.name} is '{value}', in the training scans {', '.join(column.levels)}, so it counts as unknown",
        )


_SIDE_CHECKS: dict[type, Callable[[Any, Any], Iterator[Finding]]] = {Continuous: _range, Categorical: _level}
