"""A sample of `make crash-test`: steps of a tiny study are ended by force and repeated."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_workflow.py"


@pytest.mark.slow
@pytest.mark.workflow
@pytest.mark.xdist_group("workflow")
def test_steps_that_are_ended_by_force_end_as_unbroken_ones(workspace):
    """Twenty seconds of kills, full disks and SIGTERM in random steps: no failure."""
    command = [sys.executable, str(SCRIPT), "--trials", "200", "--runs", "0", "--seconds", "20", "--until", "convert"]
    command += ["--scans", str(workspace / "results/tiny")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 failures" in done.stdout
