"""Statistics of a way to complete a study, over simulated studies with known effects, with errors by a jackknife."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dualflow.arrays import Bools, Doubles

LARGE = 0.5
"""An effect is large if it exceeds this share of the largest of its term."""


class Estimates(NamedTuple):
    """Estimates of K coefficients in S studies `[S, K]`; NaN where a study has none."""

    estimate: Doubles
    se: Doubles
    low: Doubles
    high: Doubles

    def chosen(self, coefficients: Bools) -> Estimates:
        """The estimates of some of the coefficients `[K]`."""
        return Estimates(*(values[:, coefficients] for values in self))

    def excludes(self, values: Doubles) -> Doubles:
        """Return 100 where the interval does not contain a value `[K]`, else 0; NaN where there is no interval."""
        outside = 100.0 * ((self.low > values) | (self.high < values))
        return np.where(np.isfinite(self.low), outside, np.nan)


class Statistic(NamedTuple):
    """A statistic over simulated studies and its Monte-Carlo error."""

    value: float
    error: float


class Resamples:
    """All of S studies, then all but each one: S + 1 resamples.

    Args:
        studies: number of studies S.
    """

    def __init__(self, studies: int) -> None:
        self._weights = np.vstack([np.ones(studies), 1 - np.eye(studies)])

    def count(self, values: Doubles) -> Doubles:
        """Number of known values `[S, K]` in each resample `[S + 1, K]`."""
        return np.asarray(self._weights @ np.isfinite(values))

    def mean(self, values: Doubles) -> Doubles:
        """Mean over the studies of each resample `[S + 1, K]`."""
        return _ratio(self._weights @ np.nan_to_num(values), self.count(values))

    def variance(self, values: Doubles) -> Doubles:
        """Variance over the studies of each resample `[S + 1, K]`; NaN for a single study."""
        centred = values - self.mean(values)[0]
        count = self.count(values)
        squares = self._weights @ np.nan_to_num(np.square(centred))
        return _ratio(squares - count * np.square(np.nan_to_num(self.mean(centred))), count - 1)

    @staticmethod
    def statistic(values: Doubles) -> Statistic:
        """The value of all studies and its error by the jackknife, from those of the resamples `[S + 1]`."""
        parts = values[1:]
        error = np.sqrt((len(parts) - 1) * np.square(parts - parts.mean()).mean())
        return Statistic(float(values[0]), float(error))


def average(values: Doubles) -> Doubles:
    """Mean over the known coefficients `[S + 1, K]`, as `[S + 1]`."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _ratio(above: Doubles, below: Doubles) -> Doubles:
    return np.asarray(np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0))


def validity_statistics(
    method: Estimates, complete: Estimates, reference: Doubles, truth: Doubles, large: Bools
) -> dict[str, Statistic]:
    """Return how valid and how precise a method is.

    `excluded` is the percentage of 95 % intervals without the truth, which for a term without an effect is the type I
    error. `bias` is the root mean square over coefficients of the mean error, in standard errors, without its
    Monte-Carlo part. `ratio` is the claimed standard error over the standard deviation of the estimates over studies.
    `width` is the mean width of the intervals relative to that of complete cases. `gain` is how many more measured
    scans the variance over studies is worth, in percent. `found` is the percentage of intervals of large effects that
    exclude 0. Ratios of variances are of their means over coefficients, in units of the variance that complete cases
    claim, so that terms of different units count alike.

    The error of an estimate is its difference from `reference`. With the estimate of the same study from all of its
    targets, the noise that both share cancels, and a bias shows in fewer studies. This is right for every method, also
    for complete cases: the mean difference is the method's bias less that of all targets, which is unbiased up to the
    curvature of the law, whatever the two have in common.

    Args:
        method: estimates of the method.
        complete: estimates of complete cases in the same studies.
        reference: unbiased estimates in the same studies `[S, K]`, or the truth.
        truth: true effects `[K]`.
        large: whether an effect is large `[K]`.
    """
    resamples = Resamples(len(method.estimate))
    unit = resamples.mean(np.square(complete.se))[0]
    claimed, variance = resamples.mean(np.square(method.se)), resamples.variance(method.estimate)
    difference = method.estimate - reference
    noise = _ratio(resamples.variance(difference), resamples.count(difference))
    squared_bias = resamples.statistic(average((np.square(resamples.mean(difference)) - noise) / claimed))
    bias = np.sqrt(max(squared_bias.value, 0.0))
    spread, base = average(variance / unit), average(resamples.variance(complete.estimate) / unit)
    widths = (method.high - method.low) / (complete.high - complete.low)
    return {
        "excluded": resamples.statistic(average(resamples.mean(method.excludes(truth)))),
        # The upper end of the interval of a square that may be 0.
        "bias": Statistic(float(bias), float(np.sqrt(bias**2 + squared_bias.error) - bias)),
        "ratio": resamples.statistic(np.sqrt(average(claimed / unit) / spread)),
        "width": resamples.statistic(average(resamples.mean(widths))),
        "gain": resamples.statistic(100 * (base / spread - 1)),
        "found": resamples.statistic(average(resamples.mean(method.excludes(np.zeros_like(truth)))[:, large])),
    }
