"""A server that never completes an answer holds nobody up: the call is abandoned, and the record is queued."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from evil_server import EVIL, drip_body, serving
from mlflow import MlflowClient

from dualflow.config import TrackingConfig
from dualflow.tracking import deadline, tracked_run
from dualflow.tracking.deadline import DeadlineClient, with_deadline
from dualflow.tracking.mlflow_store import open_store
from dualflow.tracking.tracked_run import tracked

BOUNDED_S = 30
"""What ends at all ends within this time, also on a machine that is busy; the servers keep a client longer."""

# A training that records against the server of argv, downloads from it, and reports when its last line runs.
PROCESS = """
import sys, time
from pathlib import Path
from dualflow.config import TrackingConfig
from dualflow.tracking import deadline
from dualflow.tracking.tracked_run import tracked
from mlflow.artifacts import download_artifacts

deadline.CALL_S = 0.5
with tracked(TrackingConfig(uri=sys.argv[1]), "study", "run", {}, Path("pending")) as run:
    run.metrics({"loss": 1.0})
try:
    deadline.with_deadline(lambda: download_artifacts(artifact_uri="mlflow-artifacts:/r/file", dst_path="."))
except TimeoutError:
    print(time.time())
"""


# An abandoned thread may be told to end while Python runs a callback of a weak reference in it, which loses the order.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(deadline, "CALL_S", 0.4)
    monkeypatch.setattr(tracked_run, "_warned", set())
    yield
    for thread in threading.enumerate():  # none of them may disturb a later test
        if thread.name == "deadline":
            thread.join(10)
    gc.collect()


@pytest.mark.parametrize("misbehave", EVIL, ids=lambda behaviour: behaviour.__name__)
def test_a_record_is_queued_at_the_deadline(misbehave, tmp_path, capsys):
    """The first and the last attempt take a deadline each, and the training ends."""
    with serving(misbehave) as uri:
        config, begin = TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts"), time.monotonic()
        with tracked(config, "study", "run", {}, tmp_path / "pending") as run:
            run.metrics({"loss": 1.0})
        assert time.monotonic() - begin < BOUNDED_S
    assert len(run.queue) == 2
    assert "warning: MLflow: 2 records of 'run' are queued" in capsys.readouterr().err


def test_an_upload_has_a_deadline(tmp_path):
    """The server knows the run, but never confirms the file."""
    (tmp_path / "report.html").write_text("report")
    with serving(drip_body, good=("/runs/get",)) as uri:
        client = open_store(TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts"))
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not complete its answer within 0\.4 s"):
            client.log_artifact("r", str(tmp_path / "report.html"), None)
        assert time.monotonic() - begin < BOUNDED_S


def test_an_abandoned_call_closes_its_connection():
    """Its thread ends, so that it neither reads on nor completes later."""
    others = set(threading.enumerate())  # such as those that other tests abandoned
    with serving(drip_body) as uri, pytest.raises(TimeoutError):
        DeadlineClient(MlflowClient(uri)).get_run("r")
    [abandoned] = [thread for thread in set(threading.enumerate()) - others if thread.name == "deadline"] or [None]
    if abandoned is not None:
        abandoned.join(10)
        assert not abandoned.is_alive()


def test_a_call_that_loses_the_order_to_end_is_told_again():
    """The order is an exception, which some callbacks swallow."""
    threads = []

    def swallow_one_order():
        threads.append(threading.current_thread())
        for _ in range(2):
            with contextlib.suppress(SystemExit):
                while True:
                    time.sleep(0.01)

    with pytest.raises(TimeoutError):
        with_deadline(swallow_one_order)
    threads[0].join(10)
    assert not threads[0].is_alive()


@pytest.mark.slow
def test_an_abandoned_call_does_not_delay_the_exit(tmp_path):
    """Neither a record nor a download, whose threads Python waits for."""
    with serving(drip_body) as uri:
        command = [sys.executable, "-c", PROCESS, uri]
        environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
        environment.pop("PYTHONWARNINGS", None)
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert time.time() - float(result.stdout) < BOUNDED_S, result.stderr
    assert len(list(tmp_path.glob("pending/run-*/0*.json"))) == 2


def test_the_deadline_of_an_upload_grows_with_its_size(tmp_path, monkeypatch):
    """A large file or folder is given the time that a slow connection takes."""
    monkeypatch.setattr(deadline, "BYTES_PER_S", 50)
    (tmp_path / "file").write_bytes(bytes(1000))
    slow = SimpleNamespace(**dict.fromkeys(("log_artifact", "log_model_artifacts"), lambda *_: time.sleep(0.8)))
    DeadlineClient(slow).log_artifact("r", str(tmp_path / "file"), None)
    DeadlineClient(slow).log_model_artifacts("m", str(tmp_path))
    with pytest.raises(TimeoutError):
        with_deadline(lambda: time.sleep(3))


def test_results_and_errors_are_passed_on(monkeypatch):
    """A TimeoutError of the call is its own."""
    monkeypatch.setattr(deadline, "CALL_S", 60)
    assert with_deadline(lambda: 3) == 3

    def fail():
        raise TimeoutError("of the call")

    with pytest.raises(TimeoutError, match="of the call"):
        with_deadline(fail)
