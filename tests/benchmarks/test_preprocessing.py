"""The preprocessing benchmark: its table, and scans that cannot be preprocessed."""

from __future__ import annotations

import bad_studies
import preprocessing
import pytest
from click.testing import CliRunner

from dualflow.config import parse_config
from dualflow.errors import DataError, GeometryError


@pytest.fixture
def config(tmp_path):
    """A study of three valid subjects."""
    bad_studies.write_study(tmp_path / "study")
    return parse_config({"study": {"name": "small", "bids": str(tmp_path / "study")}})


@pytest.fixture
def outcomes(monkeypatch):
    """Outcomes that the workers return, in place of preprocessing."""
    rows = []
    monkeypatch.setattr(preprocessing, "run_in_workers", lambda _function, tasks, **_: enumerate(rows[: len(tasks)]))
    return rows


def test_the_table_has_a_row_per_scan_and_a_column_per_step(config, outcomes, capsys):
    """A scan that fails is named with its reason, and the others are in the table."""
    times = {"read": 0.1, "brain_mask": 2.0, "other": 0.4, "seconds": 2.5, "cpu_seconds": 2.4, "peak_gib": 0.5}
    outcomes += [{"scan": "sub-good1"} | times, GeometryError("sheared"), {"scan": "sub-good3"} | times]
    preprocessing.benchmark_preprocessing(config, 3)
    output = capsys.readouterr()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.out.splitlines() if "|" in line]
    assert table[0] == ["scan", "read", "brain_mask", "other", "seconds", "CPU seconds", "GiB"]
    assert table[2:] == [[scan, "0.1", "2.0", "0.4", "2.5", "2.4", "0.50"] for scan in ("sub-good1", "sub-good3")]
    assert "sub-good2: excluded: sheared" in output.err


def test_a_study_without_a_usable_scan_is_an_error(config, outcomes):
    """The message holds the reason of the first scan."""
    outcomes += [GeometryError("sheared"), GeometryError("singular")]
    with pytest.raises(DataError, match="none of 2 scans could be preprocessed; the first: sheared"):
        preprocessing.benchmark_preprocessing(config, 2)


@pytest.mark.slow
def test_a_simulated_subject_is_timed():
    """The script runs from the command line, without a study."""
    done = CliRunner().invoke(preprocessing.main, ["--scans", "1"])
    assert done.exit_code == 0, done.output
    assert "| sub-C0001 |" in done.stdout
