"""MLflow: what is recorded, what is not, and that it never stops anything."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from dualflow.config import TrackingConfig, parse_config
from dualflow.errors import ConfigError, StoppedError
from dualflow.steps.common import tracked_values
from dualflow.training import tracking
from dualflow.training.tracking import tracked

ACCOUNT = "someaccountname"
PROCESS = """
import sys
from pathlib import Path
import pandas as pd
from dualflow.config import TrackingConfig
from dualflow.training.tracking import tracked

name, folder = sys.argv[1], Path.cwd()
config = TrackingConfig(uri=f"sqlite:///{folder}/store/mlflow.db", artifacts=folder / "store/artifacts")
with tracked(config, "study", name, {"model": name}) as run:
    run.parameters({"train": {"steps": 4, "rates": [1, 2]}, "name": name})
    run.metrics({"loss": 1.5, "nan": float("nan"), "infinite": float("inf")}, 2)
    run.data(pd.DataFrame({"scan": ["sub-01"], "split": ["train"]}), "pairs", "training")
    run.text("hello", "notes/hello.txt")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that two processes, of a named account, opened at once when there was none."""
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
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    return folder, ends


@pytest.fixture
def config(store):
    return TrackingConfig(uri=f"sqlite:///{store[0]}/store/mlflow.db", artifacts=store[0] / "store/artifacts")


def runs(config):
    """All runs of the study by name."""
    from mlflow import MlflowClient

    client = MlflowClient(config.uri)
    found = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    return {run.info.run_name: run for run in found}


@pytest.mark.slow
def test_two_processes_open_a_fresh_store_at_once(store, config):
    """Both deliver everything, without a warning; numbers that are not finite are left out."""
    assert not [text for end in store[1] for text in end if "warning:" in text]
    for name in ("first", "second"):
        run = runs(config)[name]
        assert run.info.status == "FINISHED"
        assert run.data.params == {"train.steps": "4", "train.rates": "[1, 2]", "name": name}
        assert run.data.metrics == {"loss": 1.5}
        assert len(run.inputs.dataset_inputs) == 1
    assert len(list((store[0] / "store/artifacts").rglob("hello.txt"))) == 2


@pytest.mark.slow
def test_neither_account_nor_folder_is_recorded(store, config):
    """Not in tags, parameters, or what is said of the data."""
    for run in runs(config).values():
        inputs = [(entry.dataset.to_dictionary(), list(map(dict, entry.tags))) for entry in run.inputs.dataset_inputs]
        recorded = str([run.data.tags, run.data.params, run.info.user_id, inputs])
        assert ACCOUNT not in recorded
        assert str(store[0]) not in recorded
        assert "script.py" not in recorded


def test_recorded_configuration_names_no_folder(tmp_path):
    """The rest of it is there."""
    values = tracked_values(parse_config({"study": {"name": "mine", "bids": tmp_path, "results": tmp_path / "out"}}))
    assert str(tmp_path) not in str(values)
    assert values["study"]["name"] == "mine"
    assert values["train"]["steps"] == 600
    assert "tracking" not in values


@pytest.mark.slow
def test_a_run_that_a_killed_process_left_open_is_taken_up(config):
    """The same name and tags go on in one run; other tags get their own; once it is finished, a new one begins."""
    left = tracked(config, "study", "resumed", {"seed": "1"})
    identifier = left.__enter__().run_id
    with tracked(config, "study", "resumed", {"seed": "2"}) as other:
        assert other.run_id not in (identifier, None)
    with tracked(config, "study", "resumed", {"seed": "1"}) as resumed:
        assert resumed.run_id == identifier
    with tracked(config, "study", "resumed", {"seed": "1"}) as later:
        assert later.run_id not in (identifier, None)
    left.__exit__(None, None, None)


@pytest.mark.slow
def test_a_training_that_was_asked_to_end_goes_on_as_the_same_run(config):
    """SIGTERM closes nothing: what is given again finds the run open."""
    with pytest.raises(StoppedError), tracked(config, "study", "preempted", {"model": "toy"}) as first:
        raise StoppedError("stopped by SIGTERM")
    assert runs(config)["preempted"].info.status == "RUNNING"
    with tracked(config, "study", "preempted", {"model": "toy"}) as second:
        assert second.run_id == first.run_id
    assert runs(config)["preempted"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_that_fails_says_so(config):
    """The error goes through, the run is marked."""

    def fail():
        with tracked(config, "study", "failing", {}) as run:
            run.metrics({"loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert runs(config)["failing"].info.status == "FAILED"


def test_an_unreachable_server_is_warned_about_once(tmp_path, capsys, monkeypatch):
    """Everything after it is silent and the block is run to its end."""
    monkeypatch.setattr(tracking, "_warned", set())
    config = TrackingConfig(uri="http://127.0.0.1:9", artifacts=tmp_path / "artifacts")
    with tracked(config, "study", "lonely", {}) as run:
        run.parameters({"a": 1})
        run.metrics({"loss": 1.0})
        run.table(pd.DataFrame({"a": [1]}), "table.json")
        ended = True
    lines = capsys.readouterr().err.splitlines()
    assert ended
    assert run.run_id is None
    assert [line[:16] for line in lines] == ["warning: MLflow:"]


def test_a_server_that_goes_away_is_warned_about_once(capsys, monkeypatch, tmp_path):
    """Failures that differ only in the address of an object are one failure."""
    monkeypatch.setattr(tracking, "_warned", set())
    errors = iter(ConnectionError(f"<Connection object at 0x7f00{number}> refused") for number in range(3))

    def fail(client):
        raise next(errors)

    run = tracking.Run("some run")
    for _ in range(3):
        run._deliver(fail)
    assert capsys.readouterr().err.count("warning:") == 1


@pytest.mark.parametrize("uri", ["file:///somewhere", "./mlruns", "/somewhere/mlruns"])
def test_a_file_store_is_refused_at_once(tmp_path, uri):
    """It is a wrong configuration, not a lost connection."""
    with (
        pytest.raises(ConfigError, match=r"tracking\.uri = .*expected sqlite"),
        tracked(TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts"), "study", "run", {}),
    ):
        pass
