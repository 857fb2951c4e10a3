"""The test of whether a model uses its source image."""

import numpy as np
import pandas as pd
import pytest

from dualflow.errors import ShapeError
from dualflow.evaluation.condition_check import condition_check, subject_check


def test_ties_count_against_the_true_source():
    """The confidence interval contains the share."""
    check = condition_check(np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0, 1.0]))
    assert (check.share, check.subjects, check.gain) == (0.75, 4, 0.75)
    assert 0 < check.low < 0.75 < check.high < 1
    with pytest.raises(ShapeError, match="one value per subject"):
        condition_check(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize(("wins", "people", "clear"), [(4, 4, False), (5, 5, False), (6, 6, True), (7, 8, False)])
def test_few_people_show_nothing(wins, people, clear):
    """A sign test of five people cannot have p below 5 %, whatever their interval is."""
    wrong = np.where(np.arange(people) < wins, 1.0, -1.0)
    assert condition_check(np.zeros(people), wrong).clear == clear


def test_subjects_count_once_and_without_a_finite_pair_not_at_all():
    """Scans with a NaN or an infinite NLL are dropped before visits are averaged; without a pair there is no check."""
    scans = ["sub-1_ses-a", "sub-1_ses-b", "sub-2", "sub-3", "sub-4"]
    scores = pd.DataFrame({"model": "flow", "seed": 0, "scan": scans, "nll_true": 1.0, "nll_wrong": 2.0})
    scores["nll_true"] = [1.0, 9.0, 1.0, 3.0, np.nan]
    scores["nll_wrong"] = [2.0, np.nan, np.inf, 2.0, 2.0]
    check = subject_check(scores, "nll_true", "nll_wrong")
    assert check is not None
    assert (check.share, check.subjects, check.gain) == (0.5, 2, 0.0)
    assert subject_check(scores[3:].assign(nll_wrong=np.nan), "nll_true", "nll_wrong") is None
    assert subject_check(scores, "nll_true", "nll_blurred") is None
