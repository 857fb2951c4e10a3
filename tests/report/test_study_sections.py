"""Tables of the study report: which scores they show."""

import pytest

from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.study_metrics import STUDY_METRICS
from dualflow.report import comparison_text, study_sections


@pytest.mark.parametrize("module", [comparison_text, study_sections], ids=["comparison", "report"])
def test_every_score_is_in_a_table(module):
    """A metric of the summary stands in a table of the report and of the comparison."""
    shown = {name for value in vars(module).values() if isinstance(value, tuple) for name in value}
    if module is comparison_text:
        shown |= {name for column in comparison_text.COVERAGE for name in column.names}
    absent = {"person_spread_true_r"} if module is comparison_text else set()  # the true law is no model
    assert {*METRICS, *STUDY_METRICS} - shown == absent
