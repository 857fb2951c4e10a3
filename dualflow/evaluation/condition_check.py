"""Test of whether a model uses its source image: the likelihood of real targets under true and wrong sources."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd

from dualflow.arrays import Floats
from dualflow.errors import ShapeError
from dualflow.evaluation.statistics import SIGNIFICANT, subject_means


@dataclass(frozen=True)
class ConditionCheck:
    """Share of subjects whose target is likelier under the true source than under a wrong one.

    Attributes:
        share: share of subjects; 0.5 for a model that ignores its source.
        low: lower end of the 95 % Wilson interval of the share.
        high: upper end of the interval.
        subjects: number of subjects.
        gain: mean difference of the NLLs, wrong minus true, in their unit.
        p: of a two-sided sign test of the share against one half.
    """

    share: float
    low: float
    high: float
    subjects: int
    gain: float
    p: float = nan

    @property
    def clear(self) -> bool:
        """Whether the true source is clearly likelier; with fewer than six subjects it cannot be."""
        return self.share > 0.5 and self.p < SIGNIFICANT


def condition_check(nll_true: Floats, nll_wrong: Floats) -> ConditionCheck:
    """Compare the NLLs `[N]` of all subjects under true and wrong sources; a tie counts against the true source.

    Raises:
        ShapeError: the arrays are empty or differ in length.
    """
    if nll_true.shape != nll_wrong.shape or nll_true.ndim != 1 or not len(nll_true):
        raise ShapeError(
            f"NLLs of shape {nll_true.shape} and {nll_wrong.shape} cannot be compared; "
            "give one value per subject in both"
        )
    from scipy.stats import binomtest  # half a second to import

    wins = int((nll_true < nll_wrong).sum())
    test = binomtest(wins, len(nll_true))
    interval = test.proportion_ci(method="wilson")
    gain = float(np.mean(nll_wrong - nll_true))
    return ConditionCheck(
        wins / len(nll_true), float(interval.low), float(interval.high), len(nll_true), gain, float(test.pvalue)
    )


def subject_check(scores: pd.DataFrame, true: str, wrong: str) -> ConditionCheck | None:
    """Check of one model's subjects from its scores by scan and seed; None without a finite pair of NLLs.

    Args:
        scores: rows of one model, as for `subject_means`.
        true: column of the NLL under the true source.
        wrong: column of the NLL under a wrong source.
    """
    if not {true, wrong} <= set(scores):
        return None
    finite = scores[np.isfinite(scores[[true, wrong]].to_numpy(np.float64)).all(axis=1)]
    if finite.empty:
        return None
    subjects = subject_means(finite, [true, wrong])
    return condition_check(subjects[true].to_numpy(), subjects[wrong].to_numpy())
