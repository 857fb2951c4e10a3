"""Calibration of predictive distributions: intervals, coverage, CRPS and reliability, per voxel and per region.

A prediction is a distribution of a vector of M quantities: the voxels of the mask, or the region means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pandas as pd
import scoringrules
from scipy.special import ndtri

from dualflow.arrays import Bools, Floats
from dualflow.imaging.regions import RegionMap, mean_of_known
from dualflow.inference.ensemble import Ensemble

if TYPE_CHECKING:  # torch takes a second to import, and tables need only the names of metrics
    from dualflow.inference.predict import Prediction

LEVELS = (0.5, 0.8, 0.95)
CURVE = tuple(round(0.05 * step, 2) for step in range(1, 20))
PIT_BINS = 10
"""Number of bins of a histogram of probability integral transforms."""


class PredictiveDistribution(Protocol):
    """A predictive distribution of M quantities."""

    @property
    def resolution(self) -> float:
        """Distance of neighbouring values of `pit`; 0 if it is continuous."""

    def interval(self, level: float) -> tuple[Floats, Floats]:
        """Lower and upper end `[M]` of the central interval with nominal coverage `level`."""

    def crps(self, truth: Floats) -> Floats:
        """Continuous ranked probability score `[M]`, in the unit of the quantities."""

    def pit(self, truth: Floats) -> Floats:
        """Probability integral transform `[M]`: uniform on 0 to 1 if the truth follows the distribution."""


@dataclass(frozen=True)
class Normal:
    """Independent Gaussians of `mean` `[M]` and `std` `[M]` > 0."""

    mean: Floats
    std: Floats
    resolution: float = 0.0

    def interval(self, level: float) -> tuple[Floats, Floats]:
        """Mean plus or minus z standard deviations."""
        half_width = float(ndtri((1 + level) / 2)) * self.std
        return self.mean - half_width, self.mean + half_width

    def crps(self, truth: Floats) -> Floats:
        """Closed form (Gneiting and Raftery 2007, eq. 21)."""
        return np.asarray(scoringrules.crps_normal(truth, self.mean, self.std))

    def pit(self, truth: Floats) -> Floats:
        """Gaussian distribution function at the truth."""
        from scipy.stats import norm  # half a second to import

        return np.asarray(norm.cdf(truth, self.mean, self.std))


def distance_from_uniform(values: Floats, weights: Floats) -> Floats:
    """Mean absolute deviation `int_0^1 |F(u) - u| du` of the distribution function F of a column from the uniform's.

    It is 0.25 if all values are 0.5, and about `0.31 / sqrt(N)` for N independent values that are uniform.
    """
    order = np.argsort(values[:, 0], kind="stable")
    weights = weights[:, order] / weights.sum(axis=1, keepdims=True)
    edges = np.concatenate([[0.0], values[order, 0], [1.0]])
    level = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)
    # Between two values F is constant, and int |F - u| du = (u - F) |u - F| / 2.
    right, left = edges[1:] - level, edges[:-1] - level
    return np.asarray((right * np.abs(right) - left * np.abs(left)).sum(axis=1) / 2)


def voxel_distribution(prediction: Prediction, mask: Bools) -> PredictiveDistribution | None:
    """Distribution of the voxels in `mask` `[D, H, W]`; None if the prediction has no spread."""
    if prediction.samples is not None:
        return Ensemble(np.sort(prediction.samples[:, mask], axis=0))
    std = prediction.std[mask]
    return Normal(prediction.mean[mask], std) if bool((std > 0).all()) else None


def region_distribution(prediction: Prediction, mask: Bools, regions: RegionMap) -> PredictiveDistribution | None:
    """Distribution of the region means `[R]`; None if the prediction has neither samples nor region spreads.

    A spread per voxel is not enough, because the spread of a region mean depends on the correlation of its voxels.
    """
    if prediction.samples is not None:
        return Ensemble(np.sort(regions.means(prediction.samples, mask), axis=0))
    if prediction.region_std is None or not bool((prediction.region_std > 0).all()):
        return None
    return Normal(regions.means(prediction.mean, mask), prediction.region_std)


def coverage(distribution: PredictiveDistribution, truth: Floats, level: float) -> float:
    """Share of `truth` `[M]` inside the central interval of `level`; NaN entries are ignored."""
    lower, upper = distribution.interval(level)
    finite = np.isfinite(truth) & np.isfinite(lower)
    inside = (truth >= lower) & (truth <= upper)
    return float(inside[finite].mean()) if bool(finite.any()) else float("nan")


def mean_crps(distribution: PredictiveDistribution, truth: Floats) -> float:
    """Mean CRPS of `truth` `[M]`; NaN entries are ignored."""
    return mean_of_known(distribution.crps(truth))


class Case(NamedTuple):
    """Quantities of one scan with their predictive distribution.

    Attributes:
        kind: `voxel` or `region`.
        distribution: of the M quantities.
        truth: `[M]`.
    """

    kind: str
    distribution: PredictiveDistribution
    truth: Floats


def calibration_cases(prediction: Prediction, target: Floats, mask: Bools, regions: RegionMap) -> list[Case]:
    """The voxels and the region means of one scan, where the prediction has a distribution of them."""
    voxels, means = voxel_distribution(prediction, mask), region_distribution(prediction, mask, regions)
    cases = [] if voxels is None else [Case("voxel", voxels, target[mask])]
    truth = regions.means(target, mask)
    return cases + ([] if means is None or np.isnan(truth).all() else [Case("region", means, truth)])


def reliability(cases: Sequence[Case]) -> pd.DataFrame:
    """Coverage of one scan at the nominal levels CURVE: columns kind, level, coverage."""
    rows = [(case.kind, level, coverage(case.distribution, case.truth, level)) for case in cases for level in CURVE]
    return pd.DataFrame(rows, columns=["kind", "level", "coverage"])


def pit_histogram(cases: Sequence[Case]) -> pd.DataFrame:
    """Histogram of one scan's probability integral transforms: columns kind, pit, share.

    `pit` is the centre of one of PIT_BINS equal bins, in each of which a calibrated prediction has the same share. A
    rank among samples is spread evenly over its interval of probabilities (Czado et al. 2009), because ranks of a few
    samples do not fall evenly into bins.
    """
    edges = np.linspace(0, 1, PIT_BINS + 1)
    centres, rows = np.round((edges[:-1] + edges[1:]) / 2, 6), []
    for case in cases:
        values = case.distribution.pit(case.truth)[np.isfinite(case.truth)]
        # A width above 0 makes a value of the continuous transform a step.
        width = max(case.distribution.resolution, 1e-9)
        below = [np.clip((edge - values) / width + 0.5, 0, 1).mean() for edge in edges[1:-1]]
        shares = np.diff([0.0, *below, 1.0])
        rows += [(case.kind, centre, share) for centre, share in zip(centres, shares, strict=True)]
    return pd.DataFrame(rows, columns=["kind", "pit", "share"])


def over_subjects(curves: Sequence[pd.DataFrame], position: str) -> pd.DataFrame:
    """Mean curve over subjects, each counted once.

    Args:
        curves: of each scan, with columns model, kind, subject, `position`, and the value.
        position: column of the places along the curve.
    """
    keys = ["model", "kind", position]
    by_subject = pd.concat(curves).groupby([*keys, "subject"], as_index=False).mean()
    return by_subject.drop(columns="subject").groupby(keys, as_index=False).mean()
