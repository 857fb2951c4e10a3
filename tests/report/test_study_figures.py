"""Words of the figures that a study's tables give."""

import numpy as np
import pandas as pd
import pytest

from dualflow.config.config import CEILINGS
from dualflow.modalities import MODALITIES
from dualflow.report.region_means import RegionMeans
from dualflow.report.study_figures import _agreement, _comparison, _pit


def test_the_agreement_of_a_model_that_regresses_to_the_mean_has_a_falling_trend():
    """Differences are synthetic minus real, so that a rising trend would mean that high values are too high."""
    real = np.linspace(0.8, 1.2, 24).reshape(4, 6)
    synthetic = 1 + (real - 1) / 2
    regions = (
        "Left-Caudate",
        "Right-Caudate",
        *(f"ctx-lh-{name}" for name in ("cuneus", "insula", "precuneus", "lingual")),
    )
    figure = _agreement(
        RegionMeans(("sub-1", "sub-2", "sub-3", "sub-4"), regions, real, synthetic), MODALITIES["FDG"], "flow"
    )
    trend = (
        np.polynomial.Polynomial.fit(((real + synthetic) / 2).ravel(), (synthetic - real).ravel(), 1).convert().coef[1]
    )
    assert trend < 0
    assert "A falling trend means that low values are too high and high values too low." in figure.caption
    assert "Scatter of 24 differences" in figure.alt


def test_the_pit_figure_tells_the_share_of_the_main_models_outermost_bins():
    """Those of its voxels and of its regions, and of no other model."""
    shares = {"voxel": [0.12, *[0.1] * 8, 0.08], "region": [0.2, *[0.07] * 8, 0.24]}
    centres = [0.05 + 0.1 * index for index in range(10)]
    tables = [
        pd.DataFrame({"model": model, "kind": kind, "pit": centres, "share": values})
        for model in ("flow", "unet")
        for kind, values in (shares if model == "flow" else dict.fromkeys(shares, [0.1] * 10)).items()
    ]
    (figure,) = _pit(tables, {"flow": "black", "unet": "grey"}, "flow")
    assert "bins of flow should hold 20 %, and hold 44 % of the regions, 20 % of the voxels." in figure.alt


def test_a_study_that_was_evaluated_before_has_no_pit_figure():
    """Its other figures are drawn all the same."""
    assert _pit([], {}, "flow") == []


@pytest.mark.parametrize("people", [5, 6])
def test_the_comparison_names_intervals_only_where_it_draws_them(people):
    """With fewer than six people it has means alone."""
    ends = {"low": 0.05, "high": 0.2} if people > 5 else {"low": np.nan, "high": np.nan}
    rows = [{"model": name, "metric": "mae", "mean": 0.1, **ends, "subjects": people} for name in ("flow", "unet")]
    figure = _comparison(pd.DataFrame(rows), MODALITIES["FDG"], {"flow": "black", "unet": "grey"}, CEILINGS)
    assert "Grey rings" not in figure.caption  # measured data have no limits
    few = "Means over fewer than 6 subjects, without intervals; one panel per metric"
    assert figure.caption.startswith(few) is (people == 5)
    assert ("bootstrap intervals" in figure.caption) is ("Overlapping" in figure.caption) is (people == 6)
