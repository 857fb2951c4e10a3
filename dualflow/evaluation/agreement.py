"""Agreement of two measurements of the same quantity (Bland and Altman 1986)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dualflow.arrays import Floats

LIMIT_SDS = 1.96
"""Standard deviations from the bias to a limit of agreement; 95 % of normal differences lie between the limits."""


class Agreement(NamedTuple):
    """Bias and limits of agreement, in the unit of the values.

    Attributes:
        bias: mean of `second - first`.
        low: lower limit, `bias - LIMIT_SDS * sd`.
        high: upper limit.
        outside: share of the differences outside the limits.
        pairs: number of differences.
    """

    bias: float
    low: float
    high: float
    outside: float
    pairs: int


def agreement(first: Floats, second: Floats) -> Agreement:
    """Bias and limits of agreement of `second` with `first`, both `[...]`; pairs with a NaN are left out.

    The limits are NaN with fewer than two pairs.
    """
    difference = (np.asarray(second, np.float64) - np.asarray(first, np.float64)).ravel()
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2:
        return Agreement(np.nan, np.nan, np.nan, np.nan, len(difference))
    bias, reach = float(difference.mean()), LIMIT_SDS * float(difference.std(ddof=1))
    outside = float((np.abs(difference - bias) > reach).mean())
    return Agreement(bias, bias - reach, bias + reach, outside, len(difference))
