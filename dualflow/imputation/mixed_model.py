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
    """Fit outcomes `[N, R]` on a design `[N, K]` by restricted maximum likelihood."""
    import statsmodels.api as sm

    fits = []
    for outcome in outcomes.T:
        with warnings.catch_warnings():
            # A variance of 0 between subjects lies on the boundary, which is a result and no failure.
            warnings.simplefilter("ignore")
            try:
                fit = sm.MixedLM(outcome, design, groups=subjects).fit(reml=True)
                fits.append((fit.fe_params, np.square(fit.bse_fe), float(fit.cov_re[0, 0]) / fit.scale))
            except np.linalg.LinAlgError:
                unknown = np.full(design.shape[1], np.nan)
                fits.append((unknown, unknown, np.nan))
    return MixedFits(*(np.array(part) for part in zip(*fits, strict=True)))
