"""Linear mixed models with a random intercept per subject, one per outcome."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class MixedFits(NamedTuple):
    """Fits of R outcomes; those of an outcome without a result are NaN.

    Attributes:
        coefficients: `[R, K]`.
        variances: of the coefficients `[R, K]`.
        ratio: variance between subjects over that within `[R]`.
    """

    coefficients: Floats
    variances: Floats
    ratio: Floats


def fit_random_intercepts(outcomes: Floats, design: Floats, subjects: NDArray[np.str_]) -> MixedFits:
    """Fit outcomes `[N, R]` on a design `[N, K]` by restricted maximum likelihood.

    Variances are those of the coefficients given the ratio, scale (X' V^-1 X)^-1. Standard errors of statsmodels are by
    the Hessian at its last step: where the optimiser stops early, those of terms within subjects are off by a quarter
    and more.
    """
    import statsmodels.api as sm

    _, subject, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), design.shape[1]))
    np.add.at(sums, subject, design)
    fits = []
    for outcome in outcomes.T:
        with warnings.catch_warnings():
            # A variance of 0 between subjects lies on the boundary, which is a result and no failure.
            warnings.simplefilter("ignore")
            try:
                fit = sm.MixedLM(outcome, design, groups=subjects).fit(reml=True)
                ratio = float(fit.cov_re[0, 0]) / fit.scale
                information = design.T @ design - (sums.T * (ratio / (1 + counts * ratio))) @ sums
                fits.append((fit.fe_params, fit.scale * np.linalg.inv(information).diagonal(), ratio))
            except np.linalg.LinAlgError:
                unknown = np.full(design.shape[1], np.nan)
                fits.append((unknown, unknown, np.nan))
    return MixedFits(*(np.array(part) for part in zip(*fits, strict=True)))
