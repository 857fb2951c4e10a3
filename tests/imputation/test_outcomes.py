"""Outcomes of several regions: which ones a name stands for."""

import numpy as np
import pytest

from dualflow.errors import ConfigError
from dualflow.imputation.outcomes import add_outcomes

REGIONS = ("frontal", "Braak III/IV", "a/b", "b", "a")


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [("Braak III/IV/frontal", 2.0), ("frontal/Braak III/IV", 0.5), ("b/a", 0.8), ("a/b/frontal", 3.0)],
)
def test_names_of_regions_may_have_a_slash(ratio: str, expected: float) -> None:
    values, names = add_outcomes(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), REGIONS, ratios=[ratio])
    assert values[-1] == pytest.approx(expected)
    assert names[-1] == ratio


@pytest.mark.parametrize("ratio", ["frontal", "Braak III/frontal", "frontal/"])
def test_a_ratio_of_unknown_regions_is_refused(ratio: str) -> None:
    with pytest.raises(ConfigError, match="no region named"):
        add_outcomes(np.ones(5), REGIONS, ratios=[ratio])
