"""Variances of the coefficients of group models by the jackknife over groups of subjects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dualflow.arrays import Bools, Doubles
from dualflow.imputation.mixed_model import fit_random_intercepts
from dualflow.imputation.replicates import Replicates


class FixedWeights:
    """Least squares, weighted for subjects with several scans, whose coefficients are linear in the outcomes.

    The weights are those of a random intercept: each value loses a share of its subject's mean,

        1 - 1 / sqrt(1 + n ratio),

    for a subject of n scans, which makes the errors of a subject independent.

    Args:
        design: `[N, K]`.
        subjects: subject of each scan.
        ratio: variance between subjects over that within, per outcome `[R]`; None if no subject has several scans.
    """

    def __init__(self, design: Doubles, subjects: NDArray[np.str_], ratio: Doubles | None) -> None:
        self._design, self._ratio = design, ratio
        self._subjects = np.unique(subjects, return_inverse=True)[1]

    def estimable(self, rows: Bools) -> Bools:
        """Whether `rows` `[N]` tell a coefficient from the others `[K]`."""
        design = self._design[rows]
        return np.asarray(np.isclose(np.diag(np.linalg.pinv(design) @ design), 1))

    def coefficients(self, outcomes: Doubles, rows: Bools) -> Doubles:
        """Fit `rows` of outcomes `[N, R]`; return coefficients `[R, K]`."""
        design, values = self._design[rows], outcomes[rows]
        if self._ratio is None:
            return np.asarray((np.linalg.pinv(design) @ values).T)
        # Sparse: a matrix of scans and subjects would grow with their product.
        subject = np.unique(self._subjects[rows], return_inverse=True)[1]
        members = csr_array((np.ones(len(subject)), (np.arange(len(subject)), subject)))
        counts = np.bincount(subject)[:, None]
        share = 1 - 1 / np.sqrt(1 + (members @ counts) * self._ratio)
        design_means, value_means = (members @ (members.T @ part / counts) for part in (design, values))
        weighted = design - share.T[:, :, None] * design_means
        return np.asarray(np.einsum("rkn,nr->rk", np.linalg.pinv(weighted), values - share * value_means))


def fixed_weights(design: Doubles, subjects: NDArray[np.str_], outcomes: Doubles) -> FixedWeights:
    """Return the least squares of a design, weighted as suits outcomes `[N, R]` if subjects have several scans."""
    if len(set(subjects)) == len(subjects):
        return FixedWeights(design, subjects, None)
    return FixedWeights(design, subjects, fit_random_intercepts(outcomes, design, subjects).ratio)


class Jackknife(NamedTuple):
    """The jackknife of R outcomes.

    Attributes:
        variance: of the coefficients `[R, K]`.
        shares: of the groups in it `[R, G, K]`.
    """

    variance: Doubles
    shares: Doubles


def jackknife(estimator: FixedWeights, outcomes: Doubles, replicates: Replicates) -> Jackknife:
    """Return the jackknife of the coefficients of all scans.

    With the coefficients b of all scans, and b_g without group g, the variance is

        sum_g w_g (b_g - b)^2

    with the weights of Wu (1986), plus the variance of the errors by shrinkage. Where every target is measured this is
    the estimate HC2 of MacKinnon & White (1985), which is unbiased if all errors have one variance. That of a
    coefficient is unknown if it cannot be estimated without one of the groups.

    Args:
        estimator: of N scans.
        outcomes: mean of the completed tables `[N, R]`.
        replicates: their changes.
    """
    # Also the groups without a scan among these, which may inform the draws.
    everyone, groups = np.ones(len(outcomes), dtype=bool), range(len(replicates.weight))
    unchanged, changes = estimator.coefficients(outcomes, everyone), []
    for group in groups:
        rows = replicates.group != group
        change = estimator.coefficients(outcomes + replicates.left_out[group], rows) - unchanged
        changes.append(np.where(estimator.estimable(rows), change, np.nan))
    parts = replicates.weight[:, None, None] * np.square(np.stack(changes))
    shrunk = np.stack([estimator.coefficients(change, everyone) for change in replicates.shrinkage])
    total = parts.sum(axis=0)
    shares = np.divide(parts, total, out=np.full_like(parts, np.nan), where=total > 0)
    return Jackknife(total + shrunk.var(axis=0, ddof=1), np.moveaxis(shares, 0, 1))


def carriers(shares: Doubles) -> Doubles:
    """Return how many groups carry each term `[K]`: (sum_g c_g)^2 / sum_g c_g^2 of their mean shares c in the variance.

    It is G if all groups count alike, and 1 if a single one counts.

    Args:
        shares: `[R, G, K]`; unknown ones are left out.
    """
    known = np.isfinite(shares)
    means = np.where(known, shares, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    squares = np.square(means).sum(axis=0)
    unknown = np.full_like(squares, np.nan)
    return np.asarray(np.divide(np.square(means.sum(axis=0)), squares, out=unknown, where=squares > 0))
