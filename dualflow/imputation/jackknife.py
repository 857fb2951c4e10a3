"""Variances of the coefficients of group models by the jackknife over groups of subjects."""

from __future__ import annotations

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


def jackknife_variance(estimator: FixedWeights, outcomes: Doubles, replicates: Replicates) -> Doubles:
    """Return the variances of the coefficients of all scans, `[R, K]`.

    With the coefficients b of all scans, and b_g without group g, it is

        sum_g w_g (b_g - b)^2

    with the weights of Wu (1986), plus the variance of the errors by shrinkage. Where every target is measured this is
    the estimate HC2 of MacKinnon & White (1985), which is unbiased if all errors have one variance.

    Args:
        estimator: of N scans.
        outcomes: mean of the completed tables `[N, R]`.
        replicates: their changes.
    """
    # Also the groups without a scan among these, which may inform the draws.
    everyone, groups = np.ones(len(outcomes), dtype=bool), range(len(replicates.weight))
    changes = np.stack(
        [estimator.coefficients(outcomes + replicates.left_out[group], replicates.group != group) for group in groups]
    ) - estimator.coefficients(outcomes, everyone)
    shrunk = np.stack([estimator.coefficients(change, everyone) for change in replicates.shrinkage])
    return np.asarray(np.einsum("g,grk->rk", replicates.weight, np.square(changes)) + shrunk.var(axis=0, ddof=1))
