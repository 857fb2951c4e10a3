"""An MLflow store that two processes created at the same time."""

import os
import subprocess
import sys

import pytest

from dualflow.config import TrackingConfig
from dualflow.tracking import tracked_run

ACCOUNT = "someaccountname"
PROCESS = """
import sys
from pathlib import Path
import pandas as pd
from dualflow.config import TrackingConfig
from dualflow.tracking.tracked_run import tracked

name, folder = sys.argv[1], Path.cwd()
config = TrackingConfig(uri=f"sqlite:///{folder}/store/mlflow.db", artifacts=folder / "store/artifacts")
with tracked(config, "study", name, {"model": name}) as run:
    run.parameters({"train": {"steps": 4, "rates": [1, 2]}, "name": name})
    run.metrics({"loss": 1.5, "nan": float("nan"), "infinite": float("inf")}, 2)
    run.data(pd.DataFrame({"scan": ["sub-01"], "split": ["train"]}), "pairs", "training")
    run.text("hello", "notes/hello.txt")
"""


@pytest.fixture(scope="session")
def created_store(tmp_path_factory):
    """Folder of a store that two processes of a named account created at the same time, and their outputs."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "script.py").write_text(PROCESS)
    environment = os.environ | dict.fromkeys(("USER", "LOGNAME", "USERNAME", "LNAME"), ACCOUNT)
    environment.pop("PYTHONWARNINGS", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "script.py", name], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    outputs = [process.communicate(timeout=1200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return folder, outputs


@pytest.fixture
def config(created_store):
    """Configuration of that store."""
    folder, _ = created_store
    return TrackingConfig(uri=f"sqlite:///{folder}/store/mlflow.db", artifacts=folder / "store/artifacts")


@pytest.fixture
def no_wait(monkeypatch):
    """Send again at once after a failure."""
    monkeypatch.setattr(tracked_run, "RETRY_S", 0.0)
