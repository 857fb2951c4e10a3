"""Regressions of all regions on the same terms, whose slopes are believed to be small as far as the data agree.

The values are differences from a model's predictions, so a slope is what the model gets wrong about a term. Empirical
Bayes (Efron & Morris 1975, Data analysis using Stein's estimator, JASA 70:311-319) moves every slope towards 0: far if
the slopes of all regions are no larger than their errors, hardly if the model is wrong. No slope moves far, so that an
effect that the model lacks is not lost (limited translation: Efron & Morris 1972, Limiting the risk of Bayes and
empirical Bayes estimators, Part II, JASA 67:130-139).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_MOVED = 0.5
"""Farthest that a slope moves, in standard errors of its least squares estimate."""
RIDGE = 1e-9
"""Singular values below this share of the largest count as 0."""


class Regressions(NamedTuple):
    """Regressions of R regions on K terms.

    Attributes:
        level: value of an average scan `[..., R]`.
        slopes: `[..., R, K]`.
        spread: residual standard deviation `[..., R]`.
        between: variance of the slopes around 0 beyond their errors `[..., 1, K]`.
        share: share of the way to 0 by which slopes move within the limit `[..., 1, K]`.
        limit: farthest that a slope moves `[..., R, K]`.
    """

    level: Floats
    slopes: Floats
    spread: Floats
    between: Floats
    share: Floats
    limit: Floats


class RegionRegression:
    """y_ir = a_r + b_r' terms_i + error, over the scans i that are known in region r.

    Args:
        terms: design matrix without intercept `[N, K]`.
        known: whether a value is known `[N, R]`.
        noise: joint errors of M draws, as deviations from their mean, `[M, N, R]`, of any size but 0.

    Attributes:
        size: standard deviation of the noise over draws and known scans `[R]`.
        noise: the noise with a root mean square of 1 over the known scans.
    """

    def __init__(self, terms: Floats, known: NDArray[np.bool_], noise: Floats) -> None:
        self._known = known.astype(np.float64)
        self._count = self._known.sum(axis=0)
        self._freedom = self._count - 1 - terms.shape[1]
        patterns, of_region = np.unique(known, axis=1, return_inverse=True)
        fits = [_centred(terms, rows) for rows in patterns.T]
        self._mean, self._design, self._solve = (
            np.stack(parts)[of_region.reshape(-1)] for parts in zip(*fits, strict=True)
        )
        noise = np.where(known, noise, 0.0)
        root_mean_square = np.sqrt(np.square(noise).sum(axis=(0, 1)) / (len(noise) * self._count))
        self.noise = noise / root_mean_square
        self.size = root_mean_square * np.sqrt(len(noise) / max(len(noise) - 1, 1))

    def fit(self, values: Floats) -> Regressions:
        """Fit values `[..., N, R]`; those that are not known are not used."""
        values = np.where(self._known, values, 0.0)
        level = values.sum(axis=-2) / self._count
        values = (values - level[..., None, :]) * self._known
        slopes = np.asarray(np.einsum("rkn,...nr->...rk", self._solve, values))
        spread = np.sqrt(np.square(values - self.change(slopes)).sum(axis=-2) / self._freedom)
        errors = spread[..., None] * np.linalg.norm(self._solve, axis=-1)
        error = np.square(errors).mean(axis=-2, keepdims=True)
        total = np.maximum(np.square(slopes).mean(axis=-2, keepdims=True), error)
        share = np.divide(error, total, out=np.zeros_like(total), where=total > 0)
        limit = MOST_MOVED * errors
        moved = slopes - np.clip(share * slopes, -limit, limit)
        return Regressions(level, moved, spread, total - error, share, limit)

    def change(self, slopes: Floats) -> Floats:
        """Differences of the known scans from the level `[..., N, R]` by slopes `[..., R, K]`."""
        return np.asarray(np.einsum("rnk,...rk->...nr", self._design, slopes))

    def values(self, fitted: Regressions, terms: Floats) -> Floats:
        """Expected values `[..., Q, R]` of other scans."""
        centred = terms - self._mean[:, None]
        return np.asarray(fitted.level[..., None, :] + np.einsum("rqk,...rk->...qr", centred, fitted.slopes))


def _centred(terms: Floats, rows: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Mean `[K]`, centred design `[N, K]` and its pseudo-inverse `[K, N]` of terms over some rows."""
    mean = terms[rows].mean(axis=0)
    design = (terms - mean) * rows[:, None]
    length = np.linalg.norm(design, axis=0)
    length = np.where(length > 0, length, 1.0)
    return mean, design, np.linalg.pinv(design / length, rcond=RIDGE) / length[:, None]
