"""Typicality: does a source look like the model's training scans?

Detectors score a scan one-sided, higher is less typical. All detectors are cross-fitted by subject, so that the scores
of training people are those of new people. The threshold is their conformal quantile (Vovk et al. 2005).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles, Singles
from dualflow.errors import DataError, ShapeError
from dualflow.flows.folds import balanced_folds
from dualflow.inference.detectors import Detectors
from dualflow.inference.lesion_map import LesionMap
from dualflow.inference.peak_law import PeakLaw
from dualflow.inference.typicality_features import ScanFeatures, describe, map_factor, reference_quantiles

RATE = 0.02
"""Share of typical scans that may be refused, and of scans without lesions that may be flagged."""
FOLDS = 5
"""Folds of the cross-fit."""
MIN_PEOPLE = 10
"""Fewest training people, and fewest known values of a figure."""
NORMAL_Q90 = 1.2816
"""90 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Score:
    """How typical a scan is.

    Attributes:
        z: one-sided score of each detector; 0 is the training people's median and 1.28 their 90 % quantile.
        typicality: the largest z.
        threshold: a larger typicality is refused.
        lesion: standardised peak of the lesion map.
        lesion_threshold: a larger peak is flagged.
        lesion_voxel: voxel of the model grid with that peak.
        lesion_map: signed deviation `[D, H, W]` from what the training people's anatomy explains, in standard
            deviations.
    """

    z: dict[str, float]
    typicality: float
    threshold: float
    lesion: float
    lesion_threshold: float
    lesion_voxel: tuple[int, int, int]
    lesion_map: Singles

    @property
    def refused(self) -> bool:
        """Whether the scan does not look like a training scan."""
        return self.typicality > self.threshold

    @property
    def flagged(self) -> bool:
        """Whether the scan is refused, or shows what may be a lesion."""
        return self.refused or self.lesion > self.lesion_threshold


@dataclass(frozen=True)
class Typicality:
    """The training people's scores, and what is needed to score a new scan.

    Attributes:
        spacing_mm: spacing of the model grid.
        shape: its size.
        reference: quantiles that histograms are matched to.
        detectors: the detectors, fitted on all training people.
        lesion_map: the lesion map, fitted on all training people.
        peak_law: distribution of its peaks in people without lesions.
        calibration: median and 90 % quantile of the training people's scores, by detector.
        threshold: largest typicality that is not refused.
        rate: share of typical scans that the threshold refuses; above that asked for with few people.
        lesion_rate: share of scans without lesions that are flagged.
    """

    spacing_mm: float
    shape: tuple[int, int, int]
    reference: torch.Tensor
    detectors: Detectors
    lesion_map: LesionMap
    peak_law: PeakLaw
    calibration: dict[str, tuple[float, float]]
    threshold: float
    rate: float
    lesion_rate: float

    @classmethod
    def fit(
        cls,
        sources: Sequence[Singles],
        masks: Sequence[Bools],
        *,
        spacing_mm: float,
        subjects: Sequence[str],
        rate: float = RATE,
        leave_out: Collection[str] = (),
    ) -> Self:
        """Fit the training scans.

        Args:
            sources: normalised sources `[D, H, W]`, 0 outside the mask.
            masks: brain masks of that size.
            spacing_mm: spacing of the model grid.
            subjects: subject of each scan.
            rate: share of typical scans that may be refused, and of scans without lesions that may be flagged.
            leave_out: detectors that do not count.

        Raises:
            DataError: there are fewer than MIN_PEOPLE subjects.
        """
        if (count := len(set(subjects))) < MIN_PEOPLE:
            raise DataError(f"{count} training people, expected at least {MIN_PEOPLE} to judge new scans by; add scans")
        reference = reference_quantiles(sources, masks)
        people = [describe(*pair, spacing_mm, reference) for pair in zip(sources, masks, strict=True)]
        folds = balanced_folds(subjects, count=min(FOLDS, count))
        scores = _cross_fitted(people, folds)
        counted = {name: _limits(values) for name, values in scores.items() if name not in leave_out}
        calibration = {name: limits for name, limits in counted.items() if limits is not None}
        z = np.stack([_standardised(scores[name], *limits) for name, limits in calibration.items()])
        threshold, attained = conformal_threshold(largest_by_subject(np.nanmax(z, axis=0), subjects), rate)
        images, insides = (np.stack([getattr(one, name) for one in people]) for name in ("image", "inside"))
        lesion_map, peaks = LesionMap.fit(images, insides, folds, spacing_mm * map_factor(spacing_mm))
        first = np.sort(np.unique(np.asarray(subjects), return_index=True)[1])  # a scan of each subject
        depth, height, width = sources[0].shape
        return cls(
            spacing_mm,
            (depth, height, width),
            reference,
            Detectors.fit(people),
            lesion_map,
            PeakLaw.fit(peaks[first]),
            calibration,
            threshold,
            attained,
            rate,
        )

    def score(self, source: Singles, mask: Bools) -> Score:
        """Score a new scan.

        Args:
            source: normalised source `[D, H, W]`, 0 outside the mask.
            mask: brain mask of that size.

        Raises:
            ShapeError: the scan does not lie on the model grid.
            IntensityError: the source has no contrast, or the mask is empty.
        """
        if source.shape != self.shape or mask.shape != self.shape:
            raise ShapeError(f"source {source.shape} and mask {mask.shape}, expected {self.shape}; use the model grid")
        features = describe(source, mask, self.spacing_mm, self.reference)
        scores = self.detectors(features)
        z = {
            name: float(_standardised(np.asarray(scores[name]), *limits))
            for name, limits in self.calibration.items()
            if np.isfinite(scores[name])
        }
        deviation = self.lesion_map.deviation(features.image)
        peaks = self.peak_law.standardised(deviation.peaks)
        factor = map_factor(self.spacing_mm)
        i, j, k = (
            min(index * factor + factor // 2, size - 1)
            for index, size in zip(deviation.place(int(peaks.argmax())), self.shape, strict=True)
        )
        return Score(
            z=z,
            typicality=max(z.values()),
            threshold=self.threshold,
            lesion=float(peaks.max()),
            lesion_threshold=self.peak_law.threshold(self.lesion_rate),
            lesion_voxel=(i, j, k),
            lesion_map=_on_grid(deviation.strongest(), factor, self.shape),
        )

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays, and the remaining values as JSON types."""
        parts = {"detectors": self.detectors.arrays(), "lesion_map": self.lesion_map.arrays()}
        arrays = {f"{part}.{name}": array for part, group in parts.items() for name, array in group.items()}
        rest = {
            "spacing_mm": self.spacing_mm,
            "shape": list(self.shape),
            "peak_law": self.peak_law.values(),
            "calibration": {name: list(limits) for name, limits in self.calibration.items()},
            "threshold": self.threshold,
            "rate": self.rate,
            "lesion_rate": self.lesion_rate,
        }
        return {"reference": self.reference.numpy(), **arrays}, rest

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any]) -> Self:
        """Rebuild from the result of `to_state`."""
        spacing, (depth, height, width) = float(rest["spacing_mm"]), rest["shape"]
        return cls(
            spacing_mm=spacing,
            shape=(depth, height, width),
            reference=torch.from_numpy(np.array(arrays["reference"])),
            detectors=Detectors.from_arrays(_part(arrays, "detectors")),
            lesion_map=LesionMap.from_arrays(_part(arrays, "lesion_map"), spacing * map_factor(spacing)),
            peak_law=PeakLaw.from_values(rest["peak_law"]),
            calibration={name: (float(low), float(high)) for name, (low, high) in rest["calibration"].items()},
            threshold=float(rest["threshold"]),
            rate=float(rest["rate"]),
            lesion_rate=float(rest.get("lesion_rate", RATE)),  # older models lack it
        )


def conformal_threshold(scores: Doubles, rate: float) -> tuple[float, float]:
    """Split-conformal threshold of scores `[N]`, and the rate at which exchangeable new scores exceed it.

    The largest score has rate 1 / (N + 1); a smaller rate is not attainable.
    """
    count = len(scores)
    rank = min(int(np.ceil((count + 1) * (1 - rate))), count)
    return float(np.sort(scores)[rank - 1]), 1 - rank / (count + 1)


def _cross_fitted(people: Sequence[ScanFeatures], folds: Sequence[int]) -> dict[str, Doubles]:
    """Scores of every detector `[N]`, of people that it was not fitted on."""
    scores: dict[int, dict[str, float]] = {}
    for fold in sorted(set(folds)):
        detectors = Detectors.fit([one for one, other in zip(people, folds, strict=True) if other != fold])
        scores |= {index: detectors(people[index]) for index, other in enumerate(folds) if other == fold}
    return {name: np.array([scores[index][name] for index in range(len(people))]) for name in scores[0]}


def _limits(values: NDArray[Any]) -> tuple[float, float] | None:
    """Median and 90 % quantile; None if they are equal or too few values are finite."""
    known = values[np.isfinite(values)]
    if len(known) < MIN_PEOPLE:
        return None
    median, high = (float(end) for end in np.quantile(known, (0.5, 0.9)))
    return (median, high) if high > median else None


def _standardised(values: NDArray[Any], median: float, high: float) -> Doubles:
    return np.asarray(NORMAL_Q90 * (values - median) / (high - median), np.float64)


def largest_by_subject(values: Doubles, subjects: Iterable[str]) -> Doubles:
    """The largest value of each subject, because scans of one subject are not exchangeable with new people's."""
    largest: dict[str, float] = {}
    for subject, value in zip(subjects, values, strict=True):
        largest[subject] = max(float(value), largest.get(subject, -np.inf))
    return np.array(list(largest.values()))


def _on_grid(image: Singles, factor: int, shape: tuple[int, int, int]) -> Singles:
    """Repeat voxels of the coarse image on the model grid."""
    for axis in range(3):
        image = np.repeat(image, factor, axis=axis)
    return image[tuple(slice(size) for size in shape)]


def _part(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}
