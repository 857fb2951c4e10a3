"""Words of the figures that a study's tables give."""

import pandas as pd

from dualflow.report.study_figures import _pit


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
