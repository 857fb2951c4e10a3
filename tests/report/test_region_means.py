"""Region means of the test people."""

import numpy as np
import pandas as pd
import pytest

from dualflow.report.region_means import RegionMeans, readable


def test_the_table_of_an_evaluation_is_read():
    """Rows are scans and columns regions; errors are in % of the real mean."""
    rows = [("sub-1", "b", 1.0, 1.1), ("sub-1", "a", 2.0, 1.0), ("sub-2", "a", 4.0, 4.0), ("sub-2", "b", np.nan, 1.0)]
    means = RegionMeans.from_table(pd.DataFrame(rows, columns=["scan", "region", "real", "estimate"]))
    assert (means.scans, means.regions) == (("sub-1", "sub-2"), ("a", "b"))
    np.testing.assert_allclose(means.errors(), [[-50, 10], [0, np.nan]])
    assert means.worst(2) == [0, 1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ctx-lh-inferiortemporal", "inferior temporal, left"),
        ("Right-Thalamus-Proper", "thalamus proper, right"),
        ("ctx-rh-precuneus", "precuneus, right"),
        ("ctx-lh-caudalanteriorcingulate", "caudal anterior cingulate, left"),
    ],
)
def test_names_are_readable(name, words):
    """Compound names of parcels are separated, and the hemisphere comes last."""
    assert readable(name) == words
