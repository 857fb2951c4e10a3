"""Who counts as one trial of the condition check."""

import pandas as pd
import pytest

from dualflow.steps.report import _condition


def test_visits_of_one_person_count_once():
    """Three visits that win and one other person who loses are one win of two, and both weigh the same in the gain."""
    scans = ["sub-1_ses-a", "sub-1_ses-b", "sub-1_ses-c", "sub-2"]
    scores = pd.DataFrame(
        {"model": "flow", "scan": scans, "nll_true": [1.0, 1.0, 1.0, 3.0], "nll_wrong": [2.0, 3.0, 4.0, 2.0]}
    )
    check = _condition(scores, "flow")
    assert check is not None
    assert (check.subjects, check.share) == (2, 0.5)
    assert check.gain == pytest.approx((2.0 - 1.0) / 2)
