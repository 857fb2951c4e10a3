"""Region means of the test people."""

import numpy as np
import pandas as pd
import pytest

from dualflow.imaging.regions import RegionMap
from dualflow.report.region_means import RegionMeans, readable


def test_the_table_of_an_evaluation_is_read():
    """Rows are scans and columns regions; errors are in % of the real mean."""
    rows = [("sub-1", "b", 1.0, 1.1), ("sub-1", "a", 2.0, 1.0), ("sub-2", "a", 4.0, 4.0), ("sub-2", "b", np.nan, 1.0)]
    means = RegionMeans.from_table(pd.DataFrame(rows, columns=["scan", "region", "real", "estimate"]))
    assert (means.scans, means.regions) == (("sub-1", "sub-2"), ("a", "b"))
    np.testing.assert_allclose(means.errors(), [[-50, 10], [0, np.nan]])
    assert means.worst(2) == [0, 1]


def test_a_meta_region_is_the_mean_of_the_same_regions_in_both_images():
    """A region outside the field of view of a real image leaves the mean unknown: its level would say who lacks it."""
    names = ("ctx-lh-inferiortemporal", "ctx-rh-inferiortemporal")
    values = {("sub-1", names[0]): (1.0, 1.0), ("sub-1", names[1]): (np.nan, 4.0)}
    values |= {("sub-2", names[0]): (1.0, 1.0), ("sub-2", names[1]): (4.0, 4.0)}
    rows = [(*key, *pair) for key, pair in values.items()]
    means = RegionMeans.from_table(pd.DataFrame(rows, columns=["scan", "region", "real", "estimate"]))
    atlas = RegionMap(np.repeat([1, 2], 4).reshape(2, 2, 2), names, (4.0, 4.0, 4.0))
    real, synthetic = means.meta_regions(atlas)["temporal"]
    np.testing.assert_allclose(real, [np.nan, 2.5])
    np.testing.assert_allclose(synthetic, real)


def test_a_region_that_no_image_shows_is_left_out_of_all():
    """Then the meta-region is the mean of the others in everyone."""
    names = ("ctx-lh-inferiortemporal", "ctx-rh-inferiortemporal")
    rows = [(scan, name, value, value) for scan in ("a", "b") for name, value in zip(names, (1.0, np.nan), strict=True)]
    means = RegionMeans.from_table(pd.DataFrame(rows, columns=["scan", "region", "real", "estimate"]))
    atlas = RegionMap(np.repeat([1, 2], 4).reshape(2, 2, 2), names, (4.0, 4.0, 4.0))
    np.testing.assert_allclose(means.meta_regions(atlas)["temporal"], 1.0)


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
