"""The finished study that tests of the workflow share."""

import re

import pytest
from tiny_study import TINY, run, write_config


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A working folder with a finished study."""
    folder = tmp_path_factory.mktemp("workspace")
    write_config(folder, TINY)
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    steps = [line for line in lines if line.startswith("[")]
    assert len(steps) == 18
    assert re.fullmatch(r"\[18/18\] check: \d+ s", steps[-1])
    assert any(re.fullmatch(r"\[\d+/18\] train dualflow seed 0: \d+ s", line) for line in steps)
    assert "report               results/tiny/report.html" in lines
    assert "dualflow ui" in lines[-1]
    return folder
