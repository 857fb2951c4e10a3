"""Linear mixed models with a random intercept per subject, one per outcome."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from dualflow.arrays import Doubles

SHARES = np.linspace(0, 1, 41)
"""Shares of the variance between subjects in the whole; the two beside the best of them enclose the optimum."""
LARGEST_SHARE = 1 - 1e-6
"""Closer to 1, the information matrix loses too many digits."""
LEAST_FREEDOM = 0.5
"""With fewer degrees of freedom, half an interval is over 160 standard errors wide: the variance is not known."""
UNKNOWN = 1e-10
"""Smallest eigenvalue of an information matrix, over the largest, that counts as information."""


class MixedFits(NamedTuple):
    """Fits of R outcomes.

    Attributes:
        coefficients: `[R, K]`.
        variances: of the coefficients `[R, K]`; NaN with fewer degrees of freedom than LEAST_FREEDOM.
        freedom: degrees of freedom of the variances `[R, K]`.
        ratio: variance between subjects over that within `[R]`.
    """

    coefficients: Doubles
    variances: Doubles
    freedom: Doubles
    ratio: Doubles


def fit_random_intercepts(outcomes: Doubles, design: Doubles, subjects: NDArray[np.str_]) -> MixedFits:
    """Fit outcomes `[N, R]` on a design `[N, K]` by restricted maximum likelihood.

    The likelihood is maximised over the ratio of variances alone, since the rest has a closed form given the ratio
    (Harville, JASA 72, 1977). An analysis has thousands of outcomes: statsmodels, which searches all parameters, takes
    a hundred times as long, and its standard errors are off by a quarter and more where it stops early.
    """
    start = np.linalg.lstsq(design, outcomes, rcond=None)[0]
    residuals = outcomes - design @ start  # so that the sums of squares below do not cancel
    # In an orthonormal basis the information is well conditioned, also of a year and its square.
    basis, triangle = np.linalg.qr(design)
    profile = _Profile.of(residuals, basis, subjects)
    nearest = np.array([profile.criterion(_ratio(share)) for share in SHARES[:-1]]).argmin(axis=0)
    fits = [profile.column(index).fit(int(position)) for index, position in enumerate(nearest)]
    changes, covariances, ratios = (np.array(part) for part in zip(*fits, strict=True))
    back = np.linalg.inv(triangle)
    variances = np.einsum("ki,rij,kj->rk", back, covariances, back)
    freedom = np.array([profile.freedom(ratio, back) for ratio in ratios])
    variances[freedom < LEAST_FREEDOM] = np.nan
    return MixedFits(start.T + changes @ back.T, variances, freedom, ratios)


class _Profile(NamedTuple):
    """The restricted likelihood of R outcomes as a function of the ratio of variances.

    In units of the variance within subjects, the n scans of a subject have the inverse covariance I - w 1 1' with
    w = ratio / (1 + n ratio), so sums over the scans of each subject are all that products with it need.

    Attributes:
        scans: number of scans N.
        counts: scans of each subject `[S]`.
        design_sums: of the design per subject `[S, K]`.
        outcome_sums: of the outcomes per subject `[S, R]`.
        design_squares: `[K, K]`.
        products: of design and outcomes `[K, R]`.
        outcome_squares: `[R]`.
    """

    scans: int
    counts: Doubles
    design_sums: Doubles
    outcome_sums: Doubles
    design_squares: Doubles
    products: Doubles
    outcome_squares: Doubles

    @classmethod
    def of(cls, outcomes: Doubles, design: Doubles, subjects: NDArray[np.str_]) -> _Profile:
        _, subject, counts = np.unique(subjects, return_inverse=True, return_counts=True)
        design_sums, outcome_sums = (np.zeros((len(counts), part.shape[1])) for part in (design, outcomes))
        np.add.at(design_sums, subject, design)
        np.add.at(outcome_sums, subject, outcomes)
        squares = np.square(outcomes).sum(axis=0)
        products = design.T @ outcomes
        return cls(len(design), counts.astype(float), design_sums, outcome_sums, design.T @ design, products, squares)

    def column(self, index: int) -> _Profile:
        """The profile of one outcome."""
        return self._replace(
            outcome_sums=self.outcome_sums[:, [index]],
            products=self.products[:, [index]],
            outcome_squares=self.outcome_squares[[index]],
        )

    def fit(self, position: int) -> tuple[Doubles, Doubles, float]:
        """Coefficients `[K]`, covariance `[K, K]` and the ratio of the only outcome, best beside SHARES[position]."""
        low, high = SHARES[max(position - 1, 0)], min(SHARES[position + 1], LARGEST_SHARE)

        def criterion(share: float) -> float:
            return float(self.criterion(_ratio(share))[0])

        optimum = minimize_scalar(criterion, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
        ratio = _ratio(float(optimum.x))
        # The search never tries its bounds, and a variance of 0 between subjects is a common result.
        if position == 0 and self.criterion(0.0)[0] <= optimum.fun:
            ratio = 0.0
        information, coefficients, squares = self.given(ratio)
        scale = squares[0] / (self.scans - len(information))
        return coefficients[:, 0], scale * np.linalg.inv(information), ratio

    def criterion(self, ratio: float) -> Doubles:
        """Minus twice the restricted log-likelihood `[R]`, up to a constant."""
        information, _, squares = self.given(ratio)
        determinants = np.log1p(self.counts * ratio).sum() + np.linalg.slogdet(information)[1]
        return np.asarray((self.scans - len(information)) * np.log(squares) + determinants)

    def given(self, ratio: float) -> tuple[Doubles, Doubles, Doubles]:
        """Information `[K, K]`, coefficients `[K, R]` and squares of the residuals `[R]`."""
        weights = ratio / (1 + self.counts * ratio)
        weighted = self.design_sums.T * weights
        information = self.design_squares - weighted @ self.design_sums
        products = self.products - weighted @ self.outcome_sums
        coefficients = np.asarray(np.linalg.solve(information, products), np.float64)
        squares = self.outcome_squares - weights @ np.square(self.outcome_sums) - (products * coefficients).sum(axis=0)
        return information, coefficients, np.maximum(squares, np.finfo(float).tiny)

    def freedom(self, ratio: float, contrasts: Doubles) -> Doubles:
        """Satterthwaite's degrees of freedom of the variances of `contrasts` `[C, K]` of the coefficients, `[C]`.

        2 v^2 / g' I^-1 g with the variance v of a contrast, its derivatives g by the two variances, and their expected
        restricted information I (Giesbrecht & Burns, Biometrics 41, 1985). An effect that few repeated subjects carry
        has few of them. The variance within subjects is 1; that between them is in units of 1 + ratio, so that
        both directions of I are of one size.
        """
        counts, kept, unit = self.counts, 1 / (1 + self.counts * ratio), 1 + ratio

        def between(weights: Doubles) -> Doubles:
            return np.asarray((self.design_sums.T * weights) @ self.design_sums)

        def within(power: int) -> Doubles:
            return self.design_squares - between((1 - kept**power) / counts)

        # With V the covariance of the scans and V_i its derivative by a variance: X' V^-1 V_i V^-1 X, then
        # X' V^-1 V_i V^-1 V_j V^-1 X and the trace of V^-1 V_i V^-1 V_j.
        first = np.array([within(2), unit * between(kept**2)])
        mixed, squared = unit * between(kept**3), unit**2 * between(counts * kept**3)
        second = np.array([[within(3), mixed], [mixed, squared]])
        both, twice = (counts * kept**2).sum() * unit, np.square(counts * kept).sum() * unit**2
        traces = np.array([[(counts - 1 + kept**2).sum(), both], [both, twice]])
        covariance = np.linalg.inv(within(1))
        products = covariance @ first
        lost = 2 * np.trace(covariance @ second, axis1=2, axis2=3) - np.einsum("ikl,jlk->ij", products, products)
        half = contrasts @ covariance
        slopes = np.einsum("ck,ikl,cl->ic", half, first, half)
        # Where a single subject is repeated, the scans may tell nothing of one variance: then I has an eigenvalue of 0.
        values, vectors = np.linalg.eigh((traces - lost) / 2)
        values = np.maximum(values, UNKNOWN * values.max())
        spread = (np.square(vectors.T @ slopes) / values[:, None]).sum(axis=0)
        return np.asarray(2 * np.square((half * contrasts).sum(axis=1)) / spread)


def _ratio(share: float) -> float:
    """Variance between subjects over that within, from its share of both."""
    return share / (1 - share)
