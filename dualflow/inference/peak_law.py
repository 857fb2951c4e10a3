"""Distribution of the lesion map's peaks in people without lesions, from people who may have some.

Nobody labels lesions, and a threshold from everybody's peaks would miss all lesions that are as common as the rate.
The people without lesions are therefore found as the lower of two classes, and the threshold is extrapolated from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtrit

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

LEVEL = 0.01
"""Level of the likelihood-ratio test of two classes against one, by the chi-squared distribution of two parameters.

At a higher level ten people without lesions often seem to be two classes, and the threshold is too low.
"""
LEAST_SHARE, LEAST_GAP = 0.4, 3.0
"""Smallest share of people without lesions, and least distance of the two means in standard deviations.

The reciprocals are not exactly normal, so the test finds two classes in some large groups without lesions, 2 to 2.8
standard deviations apart. Those of groups with lesions are 3 to 4 apart.
"""
STARTS = (0.05, 0.3)
"""Shares of the largest values that are the upper class at the start of a fit."""
_LEAST_PEAK = 1.0
"""Smaller peaks count as this one, or the reciprocal of a nearly empty map would be a class of its own."""


@dataclass(frozen=True)
class PeakLaw:
    """A normal distribution of the negative reciprocal of each peak, in people without lesions.

    The reciprocal makes the right tail of a maximum about normal.

    Attributes:
        mean: mean of the negative reciprocal of each kind of peak `[P]`.
        sd: standard deviation `[P]`.
        people: expected number of people without lesions, the least over kinds.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    people: int

    @classmethod
    def fit(cls, peaks: NDArray[np.float64]) -> Self:
        """Fit peaks `[N, P]`, of which up to half may be of people with lesions."""
        mean, sd, people = zip(*map(_without_lesions, _reciprocal(peaks).T), strict=True)
        return cls(np.array(mean), np.array(sd), round(min(people)))

    def standardised(self, peaks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Peaks `[P]` in standard deviations from people without lesions."""
        return np.asarray((_reciprocal(peaks) - self.mean) / self.sd)

    def threshold(self, rate: float) -> float:
        """Bound that the largest standardised peak of a new person without lesions exceeds at about this rate.

        The prediction bound of a normal sample, with Bonferroni's correction for the kinds of peak. Where the
        reciprocals are normal, the rate is about right from 30 people on; with ten it is twice as high.
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


def _without_lesions(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, standard deviation and number of the people without lesions, from values `[N]` of all people.

    They are the lower of two normal classes with one variance. All people count if the test finds one class, the two
    means are close, or the lower class is small.
    """
    count, centre, scale = len(values), float(values.mean()), max(float(values.std(ddof=1)), 1e-6)
    units = (np.sort(values)[:, None] - centre) / scale
    starts = (np.split(units, [-max(round(share * count), 1)]) for share in STARTS)
    one, two = _classes(units), max((_classes(*start) for start in starts), key=lambda fit: float(fit.score(units)))
    lower = two.means_[:, 0].argmin()
    share, sd = float(two.weights_[lower]), float(np.sqrt(two.covariances_[0, 0] * count / (count - 2)))
    likelihood_ratio = 2 * count * (two.score(units) - one.score(units))
    if likelihood_ratio > chdtri(2, LEVEL) and np.ptp(two.means_) > LEAST_GAP * sd and share >= LEAST_SHARE:
        return centre + scale * float(two.means_[lower, 0]), scale * sd, share * count
    return centre, scale, count


def _classes(*start: NDArray[np.float64]) -> GaussianMixture:
    """Normal classes with one variance, fitted to values that are divided into these parts `[n, 1]` at the start."""
    from sklearn.mixture import GaussianMixture  # half a second to import

    values = np.concatenate(start)
    within = np.concatenate([part - part.mean() for part in start]).var()
    return GaussianMixture(
        len(start),
        covariance_type="tied",
        weights_init=[len(part) / len(values) for part in start],
        means_init=[part.mean(axis=0) for part in start],
        precisions_init=[[1 / max(within, 1e-3)]],
        init_params="random",  # of no effect beside the three starting values, and without the cost of k-means
        max_iter=1000,
        random_state=0,
    ).fit(values)
