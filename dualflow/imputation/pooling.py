"""Rubin's rules: the analyses of M completed tables become one estimate with a valid interval.

Rubin (1987), Multiple Imputation for Nonresponse in Surveys; the degrees of freedom are those of Barnard & Rubin
(1999), Small-sample degrees of freedom with multiple imputation, Biometrika 86:948-955.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dualflow.arrays import Doubles
from dualflow.errors import DataError


class Pooled(NamedTuple):
    """Pooled estimates, each of any shape.

    Attributes:
        estimate: mean over the completed tables.
        se: standard error.
        df: degrees of freedom of Student's t.
        fmi: fraction of missing information: the share of the estimate's uncertainty that the missing values cause.
        between: variance of the estimates between the tables.
    """

    estimate: Doubles
    se: Doubles
    df: Doubles
    fmi: Doubles
    between: Doubles

    def interval(self, level: float = 0.95) -> tuple[Doubles, Doubles]:
        """Return the ends of the confidence interval."""
        from scipy.stats import t

        half = t.ppf((1 + level) / 2, self.df) * self.se
        return self.estimate - half, self.estimate + half

    def p(self) -> Doubles:
        """Return the two-sided p-value of an effect of 0."""
        from scipy.stats import t

        return np.asarray(2 * t.sf(np.abs(self.estimate / self.se), self.df))


def pool(estimates: Doubles, variances: Doubles, df_complete: Doubles | float) -> Pooled:
    """Pool the analyses of M completed tables.

    With the mean W of the variances within tables, the variance B between the estimates, T = W + (1 + 1/M) B,
    g = (1 + 1/M) B / T and the complete-data degrees of freedom v,

        v_m = (M - 1) / g^2,    v_o = v (v + 1) / (v + 3) (1 - g),    df = 1 / (1 / v_m + 1 / v_o),
        fmi = (r + 2 / (df + 3)) / (r + 1),    r = (1 + 1/M) B / W.

    Where nothing is missing, B is 0 and df is v.

    Args:
        estimates: `[M, ...]`.
        variances: squared standard errors `[M, ...]`.
        df_complete: degrees of freedom of each analysis `[M, ...]`, whose mean is v, or one number.

    Raises:
        DataError: there are fewer than 2 tables.
    """
    count = len(estimates)
    if count < 2:
        raise DataError(f"{count} completed tables; pooling needs at least 2, and 20 or more are usual")
    within, between_tables = variances.mean(axis=0), estimates.var(axis=0, ddof=1)
    df_complete = np.broadcast_to(df_complete, variances.shape).mean(axis=0)
    between = (1 + 1 / count) * between_tables
    between = np.where(between > 1e-12 * within, between, 0.0)
    total = within + between
    share = between / total
    observed = df_complete * (df_complete + 1) / (df_complete + 3) * (1 - share)
    with np.errstate(divide="ignore"):
        df = 1 / (share**2 / (count - 1) + 1 / observed)
    df = np.where(between > 0, df, df_complete)
    ratio = between / within
    fmi = np.where(between > 0, (ratio + 2 / (df + 3)) / (ratio + 1), 0.0)
    return Pooled(estimates.mean(axis=0), np.sqrt(total), df, fmi, between_tables)
