"""The test of whether a model uses its source image."""

import numpy as np
import pytest

from dualflow.errors import ShapeError
from dualflow.evaluation.condition_check import condition_check


def test_ties_count_against_the_true_source():
    """The confidence interval contains the share."""
    check = condition_check(np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0, 1.0]))
    assert (check.share, check.subjects, check.gain) == (0.75, 4, 0.75)
    assert 0 < check.low < 0.75 < check.high < 1
    with pytest.raises(ShapeError, match="one value per subject"):
        condition_check(np.zeros(2), np.zeros(3))
