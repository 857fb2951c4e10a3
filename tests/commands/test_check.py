"""The last step fails if scans need attention, and says which."""

import pandas as pd
import pytest

from dualflow.commands.check import check
from dualflow.commands.steps import CHECK, step_names
from dualflow.config import parse_config
from dualflow.data.exclusions import STEP as REVIEW
from dualflow.data.quarantine import Quarantine, write_quarantine
from dualflow.errors import DataError
from dualflow.inference.conversion_table import COLUMNS, write_conversion_table
from dualflow.manifest import write_manifest


@pytest.fixture
def last_step(tmp_path):
    """Run the last step of a finished study with excluded scans and those of its conversion: verdict and reason."""
    config = parse_config({"study": {"name": "t", "results": str(tmp_path)}, "baselines": {"models": ["mean_image"]}})
    layout = config.layout
    for step in set(step_names(config)) - {CHECK}:
        write_manifest(layout.manifest(step), step=step, outputs={}, inputs={}, config={})

    def run(excluded=(), converted=()):
        rows = [
            (f"sub-{n}", verdict, verdict == "ok", reason, 1.0, "f00") for n, (verdict, reason) in enumerate(converted)
        ]
        write_quarantine(layout.quarantine, [Quarantine(f"sub-x{n}", *row) for n, row in enumerate(excluded)])
        write_conversion_table(layout.conversions, pd.DataFrame(rows, columns=COLUMNS))
        check(config)
        return layout.manifest(CHECK).is_file()

    return run


def test_a_study_without_failures_is_finished(last_step):
    """A scan that a reviewer excluded, and one that is unlike the training people, need no attention here."""
    assert last_step([(REVIEW, "moved")], [("ok", ""), ("review", "unlike")])


def test_a_failed_conversion_fails_the_study(last_step):
    """As an excluded scan does; both are counted."""
    failures = [("failed", "MemoryError: "), ("ok", ""), ("failed", "CUDA out of memory")]
    with pytest.raises(DataError, match=r"^finished, but 2 scans could not be .* sub-0: MemoryError: ?; the same comm"):
        last_step(converted=failures)
    with pytest.raises(DataError, match=r"but 1 scan was excluded: .* sub-x0: empty; 1 scan could not be converted"):
        last_step([("preprocess", "empty")], failures[:1])
