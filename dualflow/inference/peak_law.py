"""Distribution of the lesion map's peaks in people without lesions, from people who may have some.

Nobody labels lesions, and a threshold from everybody's peaks would miss all lesions that are as common as the rate.
Outliers among the training people are therefore removed first, and the threshold is extrapolated from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

OUTLIER_LEVEL, OUTLIER_SHARE = 0.01, 0.5
"""Level of the test for outliers, and the largest share of people that it can remove.

At a higher level the test removes the largest peaks of few people without lesions, and the threshold is too low: with
ten people, a rate of 2 % becomes 4 % at this level and 9 % at 0.05.
"""
_LEAST_PEAK = 0.1


@dataclass(frozen=True)
class PeakLaw:
    """A normal distribution of the negative reciprocal of each peak, in people without lesions.

    The reciprocal makes the right tail of a maximum about normal. Outliers are removed on the logarithm, where
    lesions stand out more.

    Attributes:
        mean: mean of the negative reciprocal of each kind of peak `[P]`.
        sd: standard deviation `[P]`.
        people: number of people left after removal of outliers, the least over kinds.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    people: int

    @classmethod
    def fit(cls, peaks: NDArray[np.float64]) -> Self:
        """Fit peaks `[N, P]`, of which up to half may be of people with lesions."""
        usual = [_usual(column) for column in np.log(np.maximum(peaks, _LEAST_PEAK)).T]
        columns = [column[keep] for column, keep in zip(_reciprocal(peaks).T, usual, strict=True)]
        mean, sd = ([float(part) for part in parts] for parts in zip(*map(_moments, columns), strict=True))
        return cls(np.array(mean), np.array(sd), min(map(len, columns)))

    def standardised(self, peaks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Peaks `[P]` in standard deviations from people without lesions."""
        return np.asarray((_reciprocal(peaks) - self.mean) / self.sd)

    def threshold(self, rate: float) -> float:
        """Bound that the largest standardised peak of a new person without lesions exceeds at about this rate.

        The prediction bound of a normal sample, with Bonferroni's correction for the kinds of peak. From 20 people on
        the rate is right; with ten it is twice as high.
        """
        quantile = stdtrit(self.people - 1, 1 - rate / len(self.mean))
        return float(quantile * np.sqrt(1 + 1 / self.people))

    def values(self) -> dict[str, Any]:
        """The fitted values as JSON types."""
        return {"mean": self.mean.tolist(), "sd": self.sd.tolist(), "people": self.people}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """The law with these values."""
        return cls(np.array(values["mean"]), np.array(values["sd"]), int(values["people"]))


def _reciprocal(peaks: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-1 / np.maximum(peaks, _LEAST_PEAK))


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), max(float(values.std(ddof=1)), 1e-6)


def _usual(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values `[N]` are not large outliers, by the one-sided generalised ESD test (Rosner 1983)."""
    order, count, outliers = np.argsort(values), len(values), 0
    for removed in range(int(OUTLIER_SHARE * count)):
        rest = values[order[: count - removed]]
        size = len(rest)
        if size < 4:
            break
        t = stdtrit(size - 2, 1 - OUTLIER_LEVEL / size)
        critical = (size - 1) * t / np.sqrt((size - 2 + t**2) * size)
        mean, sd = _moments(rest)
        if rest[-1] - mean > critical * sd:
            outliers = removed + 1
    keep = np.zeros(count, bool)
    keep[order[: count - outliers]] = True
    return keep
