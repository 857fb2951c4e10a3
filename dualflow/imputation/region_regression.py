"""Regressions of all regions on the same terms and on their predictions, whose slopes inform each other.

Slopes of different regions are alike, and each is uncertain. Empirical Bayes (Efron & Morris 1975, Data analysis using
Stein's estimator, JASA 70:311-319) moves every slope towards the mean over regions: far if the regions differ no more
than their errors do, hardly if effects are particular to regions. No slope moves far, so that an effect which few
regions lack is not drawn into them (limited translation: Efron & Morris 1972, Limiting the risk of Bayes and empirical
Bayes estimators, Part II, JASA 67:130-139).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles

LEAST_REGIONS = 10
"""Fewest regions from which the variance of a slope over regions is estimated; with fewer, slopes stay as they are."""
MOST_MOVED = 0.375
"""Farthest that a slope moves, in standard errors of its least squares estimate.

Farther moves gain more and bias more; docs/results/groups.md has both.
"""
LEAST_SINGULAR = 1e-9
"""Singular values below this share of the largest count as 0."""


class Regressions(NamedTuple):
    """Regressions of R regions with P slopes.

    Attributes:
        level: value of an average scan `[..., R]`.
        slopes: of the K terms, then of the prediction, `[..., R, P]`.
        spread: residual standard deviation `[..., R]`.
        centre: mean of the slopes over regions `[..., 1, P]`; the slopes themselves if there are too few regions.
        between: variance of the slopes over regions beyond their errors `[..., 1, P]`; 0 `[P]` with too few regions.
        errors: variance over regions of the errors of the slopes `[P]`, 0 with too few regions.
        limit: farthest that a slope moves `[..., R, P]`.
    """

    level: Doubles
    slopes: Doubles
    spread: Doubles
    centre: Doubles
    between: Doubles
    errors: Doubles
    limit: Doubles


class RegionRegression:
    """y_ir = a_r + b_r' [terms_i, prediction_ir] + error, over the scans i that are known in region r.

    Args:
        terms: design matrix without intercept `[N, K]`.
        prediction: predicted region means `[N, R]`.
        known: whether measurement and prediction are finite `[N, R]`.
        noise: joint errors of M draws `[M, N, R]`, of any size but 0.

    Attributes:
        size: root mean square of the noise `[R]`.
        noise: the noise with a root mean square of 1 over the known scans.
    """

    def __init__(self, terms: Doubles, prediction: Doubles, known: Bools, noise: Doubles) -> None:
        self._known = known.astype(np.float64)
        self._count = self._known.sum(axis=0)
        prediction, noise = np.where(known, prediction, 0.0), np.where(known, noise, 0.0)
        design = self._raw(terms, prediction)
        weight = self._known.T[:, :, None]
        self._centre = (design * weight).sum(axis=1, keepdims=True) / self._count[:, None, None]
        centred = (design - self._centre) * weight
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        # A constant prediction, such as that of the mean image, differs from its mean by rounding alone.
        varies = length > LEAST_SINGULAR * np.linalg.norm(design * weight, axis=1, keepdims=True)
        self._design = np.where(varies, centred, 0.0)
        self._solve, rank = _pseudo_inverse(self._design, length)
        self._solve_terms, _ = _pseudo_inverse(self._design[:, :, :-1], length[:, :, :-1])
        self._freedom = np.maximum(self._count - 1 - rank, 1)
        self.size = np.sqrt(np.square(noise).sum(axis=(0, 1)) / (len(noise) * self._count))
        self.noise = noise / self.size

    def fit(self, values: Doubles, errors: Doubles | None = None) -> Regressions:
        """Fit measurements `[..., N, R]`; those that are not known are not used.

        Args:
            values: the measurements.
            errors: variance over regions of the slopes' errors `[P]`; by default that of the noise with the spread of
                these measurements, `[N, R]`.
        """
        values = np.where(self._known, values, 0.0)
        level = values.sum(axis=-2) / self._count
        values = (values - level[..., None, :]) * self._known
        slopes = _solved(self._solve, values)
        residuals = values - self.change(slopes)
        spread = np.sqrt(np.square(residuals).sum(axis=-2) / self._freedom)
        if len(self._count) < LEAST_REGIONS:
            nothing = np.zeros(slopes.shape[-1])
            return Regressions(level, slopes, spread, slopes, nothing, nothing, np.zeros_like(slopes))
        if errors is None:
            errors = self._slope_errors(spread)
        limit_of_terms, limit = (
            MOST_MOVED * spread[..., None] * np.linalg.norm(one, axis=-1) for one in (self._solve_terms, self._solve)
        )
        prediction = _shrink(slopes[..., -1:], errors[-1:], limit[..., -1:])
        values = values - self._design[:, :, -1].T * prediction.slopes[..., None, :, 0]
        terms = _shrink(_solved(self._solve_terms, values), errors[:-1], limit_of_terms)
        both = _Shrunk(*(np.concatenate(parts, axis=-1) for parts in zip(terms, prediction, strict=True)))
        return Regressions(level, both.slopes, spread, both.centre, both.between, errors, both.limit)

    def change(self, slopes: Doubles) -> Doubles:
        """Differences of the known scans from the level `[..., N, R]` by slopes `[..., R, P]`."""
        return np.asarray(np.einsum("rnp,...rp->...nr", self._design, slopes))

    def values(self, fitted: Regressions, terms: Doubles, prediction: Doubles) -> Doubles:
        """Expected values `[..., Q, R]` of other scans."""
        design = self._raw(terms, prediction) - self._centre
        return np.asarray(fitted.level[..., None, :] + np.einsum("rnp,...rp->...nr", design, fitted.slopes))

    def _slope_errors(self, spread: Doubles) -> Doubles:
        """Variance over regions of the slopes' errors `[P]`, those of the terms for a known slope of the prediction.

        Errors of different regions are correlated by the noise, so that they differ less over regions than errors of
        one region differ over studies.
        """
        noise = self.noise * spread
        noise = noise - (noise.sum(axis=-2, keepdims=True) / self._count) * self._known
        errors = np.concatenate([_solved(self._solve_terms, noise), _solved(self._solve, noise)[..., -1:]], axis=-1)
        return np.asarray(errors.var(axis=-2, ddof=1).mean(axis=0))

    @staticmethod
    def _raw(terms: Doubles, prediction: Doubles) -> Doubles:
        """Regressors `[R, N, P]`."""
        return np.stack([np.column_stack([terms, one]) for one in prediction.T])


class _Shrunk(NamedTuple):
    slopes: Doubles
    centre: Doubles
    between: Doubles
    limit: Doubles


def _shrink(slopes: Doubles, error: Doubles, limit: Doubles) -> _Shrunk:
    """Move slopes `[..., R, P]` towards their mean, given the variance of their errors over regions `[P]`."""
    centre = slopes.mean(axis=-2, keepdims=True)
    between = np.maximum(slopes.var(axis=-2, ddof=1, keepdims=True) - error, 0.0)
    move = np.clip(moved_share(between, error) * (centre - slopes), -limit, limit)
    return _Shrunk(slopes + move, centre, between, limit)


def moved_share(between: Doubles, error: Doubles) -> Doubles:
    """Share of the way to the mean by which slopes move, from their variance over regions and that of their errors."""
    total = between + error
    return np.divide(error, total, out=np.zeros_like(total), where=total > 0)


def _solved(solve: Doubles, values: Doubles) -> Doubles:
    return np.asarray(np.einsum("rpn,...nr->...rp", solve, values))


def _pseudo_inverse(design: Doubles, length: Doubles) -> tuple[Doubles, NDArray[np.int64]]:
    """Pseudo-inverse `[R, P, N]` of designs `[R, N, P]` with columns of a length each, and the ranks `[R]`."""
    scaled = design / np.where(length > 0, length, 1.0)
    inverse = np.linalg.pinv(scaled, rcond=LEAST_SINGULAR)
    rank = np.linalg.matrix_rank(inverse)
    return inverse / np.where(length > 0, length, 1.0).swapaxes(1, 2), rank
