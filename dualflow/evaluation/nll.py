"""Whether a model uses its condition: the density of a real target under its own and under another one's source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from dualflow.errors import ShapeError
from dualflow.evaluation.prediction import Floats


@dataclass(frozen=True)
class ConditionCheck:
    """How often a target is likelier under its own source than under another subject's.

    Attributes:
        share: share of the subjects for whom it is; 0.5 is a model that ignores its source.
        low: lower end of the 95 % Wilson interval of the share.
        high: upper end.
        subjects: how many subjects were tried.
        gain: mean of NLL under the wrong source minus NLL under the true one, in the unit of the NLLs.
    """

    share: float
    low: float
    high: float
    subjects: int
    gain: float


def condition_check(nll_true: Floats, nll_wrong: Floats) -> ConditionCheck:
    """Compare the NLL `[N]` under each subject's own source with that under another subject's; a tie is a loss.

    Raises:
        ShapeError: the arrays are empty or not of one length.
    """
    if nll_true.shape != nll_wrong.shape or nll_true.ndim != 1 or not len(nll_true):
        raise ShapeError(
            f"NLLs of shape {nll_true.shape} and {nll_wrong.shape} cannot be compared; "
            "give one value per subject in both"
        )
    wins = int((nll_true < nll_wrong).sum())
    test = binomtest(wins, len(nll_true))
    interval = test.proportion_ci(method="wilson")
    gain = float(np.mean(nll_wrong - nll_true))
    return ConditionCheck(wins / len(nll_true), float(interval.low), float(interval.high), len(nll_true), gain)
