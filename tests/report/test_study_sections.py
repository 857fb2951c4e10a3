"""Tables of the study report: which scores they show."""

import numpy as np
import pandas as pd
import pytest

from dualflow.config import parse_config
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.study_metrics import STUDY_METRICS
from dualflow.modalities import MODALITIES
from dualflow.report import comparison_text, study_sections
from dualflow.report.study_sections import _native_table


@pytest.mark.parametrize("module", [comparison_text, study_sections], ids=["comparison", "report"])
def test_every_score_is_in_a_table(module):
    """A metric of the summary stands in a table of the report and of the comparison."""
    shown = {name for value in vars(module).values() if isinstance(value, tuple) for name in value}
    if module is comparison_text:
        shown |= {name for column in comparison_text.COVERAGE for name in column.names}
    assert {*METRICS, *STUDY_METRICS} <= shown


def test_scores_in_native_space_have_a_table_that_says_so(tmp_path):
    """The table has the mean over people with interval, marks no best model, and names its space."""
    config = parse_config({"study": {"name": "x", "results": str(tmp_path), "side": ["age"]}})
    native = pd.DataFrame(
        {"model": "dualflow", "seed": 0, "scan": [f"sub-{i}" for i in range(8)], "mae": np.full(8, 0.1)}
    )
    native = native.assign(rmse=0.2, psnr=25.0, pearson_r=0.9)
    table = _native_table(config, native, 8, MODALITIES["FDG"])
    assert "Converted: 8 of 8 test scans." in table.caption
    fewer = _native_table(config, native, 9, MODALITIES["FDG"])
    assert "Converted: 8 of 9 test scans, whose scores may be better than those of the others." in fewer.caption
    assert list(table.frame.columns) == ["Model", "MAE (SUVR)", "RMSE (SUVR)", "PSNR (dB)", "Pearson r"]
    assert table.frame["MAE (SUVR)"].tolist() == ["0.1000 [0.1000, 0.1000]"]
    assert "native space" in table.caption
    assert not table.best
