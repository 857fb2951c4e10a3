"""MLflow: what is recorded, what is not, and that it never stops anything."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.config import TrackingConfig, parse_config, public_values
from dualflow.errors import ConfigError, StoppedError
from dualflow.tracking import tracked_run as tracking
from dualflow.tracking.store import Subject
from dualflow.tracking.tracked_run import deliver, tracked

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
    values = public_values(parse_config({"study": {"name": "mine", "bids": tmp_path, "results": tmp_path / "out"}}))
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
    """The block is run to its end, what was said waits, and where it waits is said last."""
    monkeypatch.setattr(tracking, "_warned", set())
    config = TrackingConfig(uri="http://127.0.0.1:9", artifacts=tmp_path / "artifacts")
    with tracked(config, "study", "lonely seed 0", {}, tmp_path / "outbox") as run:
        run.parameters({"a": 1})
        run.metrics({"loss": 1.0})
        run.table(pd.DataFrame({"a": [1]}), "table.json")
        with run.system():
            ended = True
    lines = capsys.readouterr().err.splitlines()
    assert ended
    assert run.run_id is None
    assert lines[0].startswith("warning: MLflow:")
    assert lines[1:] == [
        f"warning: MLflow: 4 records of 'lonely seed 0' wait in {run.outbox.folder}; `dualflow deliver` hands them in"
    ]
    assert run.outbox.folder.name.startswith("lonely-seed-0-")


def say_all(run):
    """One call of each kind that can wait."""
    run.parameters({"train": {"steps": 4}})
    for step in range(3):
        run.metrics({"loss": 1.0 / (step + 1)}, step)
        run.image(np.full((4, 6), 0.5), "validation/axial", step)
    run.data(pd.DataFrame({"scan": ["sub-01"], "split": ["train"]}), "pairs", "training")
    run.table(pd.DataFrame({"a": [1, 2]}), "table.json")
    run.text("hello", "notes/hello.txt")


def recorded(config, name):
    """What a run holds, however it came there."""
    from mlflow import MlflowClient

    run, client = runs(config)[name], MlflowClient(config.uri)
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    images = len(client.list_artifacts(run.info.run_id, "images"))
    tables = [file.path for file in client.list_artifacts(run.info.run_id) if file.path.endswith(".json")]
    inputs = [entry.dataset.digest for entry in run.inputs.dataset_inputs]
    return run.info.status, run.data.params, history, images, tables, inputs


def in_a_process_of_its_own(config, folder, outbox):
    """`dualflow sync`, which knows of the run what is written in its outbox."""
    study = folder / "study.yaml"
    (folder / "mine").mkdir()
    outbox.rename(folder / "mine/pending")
    store = f"tracking: {{uri: '{config.uri}', artifacts: '{config.artifacts}'}}"
    study.write_text(f"study: {{name: mine, results: {folder}}}\n{store}\n")
    command = [sys.executable, "-m", "dualflow.cli", "sync", "--config", str(study)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert "1 runs uploaded" in done.stdout, done.stderr
    (folder / "mine/pending").rename(outbox)
    assert not list(folder.glob("*.db"))


@pytest.mark.slow
@pytest.mark.parametrize("back", ["while it trains", "after it ended", "after it was killed"])
def test_what_a_server_that_was_away_missed_is_delivered_later(config, tmp_path, monkeypatch, back):
    """Once it is back, everything is there as if it had never been away: nothing lost, nothing twice."""
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    present, name = f"present, {back}", f"away, back {back}"
    with tracked(config, "study", present, {}) as run:
        say_all(run)
    away, outbox = config.model_copy(update={"uri": "http://127.0.0.1:9"}), tmp_path / "outbox"
    unfinished = tracked(away, "study", name, {}, outbox)
    run = unfinished.__enter__()
    say_all(run)
    if back == "while it trains":
        run.config = config
    if back != "after it was killed":
        unfinished.__exit__(None, None, None)
    else:  # the same is begun again, and first hands in what was said
        with tracked(config, "study", name, {}, outbox):
            pass
    if back == "after it ended":
        assert deliver(away, outbox) == (0, 1)
        in_a_process_of_its_own(config, tmp_path, outbox)
    assert deliver(config, outbox) == (0, 0)
    assert recorded(config, name) == recorded(config, present)
    assert not [path for path in outbox.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_server_that_goes_away_in_between(config, tmp_path, monkeypatch):
    """What is said meanwhile joins the run that was begun, in order."""
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    outbox, delivered = tmp_path / "outbox", tracking.CALLS["metrics"]

    def refused(*_):
        raise ConnectionError("refused")

    with tracked(config, "study", "gap", {}, outbox) as run:
        began = run.run_id
        for step in range(6):
            monkeypatch.setitem(tracking.CALLS, "metrics", refused if step in (2, 3) else delivered)
            run.metrics({"loss": float(step)}, step)
    assert runs(config)["gap"].info.run_id == began
    assert recorded(config, "gap")[2] == [(step, float(step)) for step in range(6)]


@pytest.mark.slow
def test_what_a_server_will_not_have_is_set_aside(config, tmp_path, monkeypatch):
    """The rest goes on: a value that was changed keeps its first one, a file that is gone is left out."""
    outbox, away = tmp_path / "outbox", config.model_copy(update={"uri": "http://127.0.0.1:9"})
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    with tracked(away, "study", "refusing", {}, outbox) as run:
        run.parameters({"a": 1})
        run.parameters({"a": 2, "b": 3})
        run.file(tmp_path / "gone")
        run.metrics({"loss": 1.0})
    assert deliver(config, outbox) == (1, 0)
    status, parameters, history, *_ = recorded(config, "refusing")
    assert (status, parameters, history) == ("FINISHED", {"a": "1", "b": "3"}, [(0, 1.0)])
    assert [path.name for path in run.outbox.folder.iterdir()] == ["refused-00000002.json"]
    assert deliver(config, outbox) == (0, 0)


@pytest.mark.slow
def test_trainings_that_differ_do_not_share_an_outbox(config, tmp_path, monkeypatch):
    """The same name with other tags, or begun anew after its end, is another run."""
    outbox, away = tmp_path / "outbox", config.model_copy(update={"uri": "http://127.0.0.1:9"})
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    for training, value in (("a", 1.0), ("b", 2.0), ("b", 3.0)):
        with tracked(away, "study", "shared", {"training": training}, outbox) as run:
            run.metrics({"loss": value})
    assert deliver(config, outbox) == (2, 0)
    from mlflow import MlflowClient

    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    found = client.search_runs([experiment], "tags.`mlflow.runName` = 'shared'")
    told = sorted((run.data.tags["training"], run.data.metrics["loss"], run.info.status) for run in found)
    assert told == [("a", 1.0, "FINISHED"), ("b", 2.0, "FINISHED"), ("b", 3.0, "FINISHED")]


def test_only_one_hands_in_at_a_time(tmp_path):
    """The other goes on and leaves it to the first."""
    first = tracking.outbox_of(Subject("study", "run", {}), tmp_path)
    first.put("metrics", {}, None)
    second = tracking.outbox_of(Subject("study", "run", {}), tmp_path)
    with first.handing_in() as ours, second.handing_in() as theirs:
        assert (ours, theirs) == (True, False)


def test_a_full_disk_does_not_stop_it_either(tmp_path, monkeypatch, capsys):
    """Neither server nor folder: a warning, and on."""
    monkeypatch.setattr(tracking, "_warned", set())
    (tmp_path / "outbox").write_text("a file where the folder should be")
    config = TrackingConfig(uri="http://127.0.0.1:9", artifacts=tmp_path / "artifacts")
    with tracked(config, "study", "lost", {}, tmp_path / "outbox") as run:
        run.metrics({"loss": 1.0})
    assert "cannot be written" in capsys.readouterr().err


def test_a_server_that_goes_away_is_warned_about_once(capsys, monkeypatch, tmp_path):
    """Failures that differ only in the address of an object are one failure."""
    monkeypatch.setattr(tracking, "_warned", set())
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    errors = iter(ConnectionError(f"<Connection object at 0x7f00{number}> refused") for number in range(3))

    def fail(client):
        raise next(errors)

    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=tmp_path / "artifacts")
    run = tracking.Run(config, Subject("study", "run", {}))
    for _ in range(3):
        run._try(fail)
    assert capsys.readouterr().err.count("warning: MLflow: <Connection object> refused") == 1


@pytest.mark.parametrize("uri", ["file:///somewhere", "./mlruns", "/somewhere/mlruns"])
def test_a_file_store_is_refused_at_once(tmp_path, uri):
    """It is a wrong configuration, not a lost connection."""
    with (
        pytest.raises(ConfigError, match=r"tracking\.uri = .*expected sqlite"),
        tracked(TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts"), "study", "run", {}),
    ):
        pass


@pytest.mark.slow
def test_the_machine_is_watched_while_it_trains(config, monkeypatch):
    """Load and memory under names that end in their unit; a run that is gone on with goes on counting."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")

    def preempted():
        time.sleep(1.5)
        raise StoppedError("preempted")

    for _ in range(2):
        with pytest.raises(StoppedError), tracked(config, "study", "watched", {}) as run, run.system():
            preempted()
    metrics = runs(config)["watched"].data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert "system/cpu_utilization_percentage" in metrics
    from mlflow import MlflowClient

    client = MlflowClient(config.uri)
    steps = [m.step for m in client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")]
    assert sorted(steps) == list(range(len(steps)))


def test_deliver_says_how_many_runs_wait(tmp_path):
    """As a command: 0 when all is handed in, 1 while the server is away."""
    study = tmp_path / "study.yaml"
    study.write_text(f"study: {{name: mine, results: {tmp_path}/results}}\ntracking: {{uri: 'http://127.0.0.1:9'}}\n")
    command = CliRunner()
    assert "0 runs uploaded" in command.invoke(main, ["sync", "--config", str(study)]).output
    config = TrackingConfig(uri="http://127.0.0.1:9", artifacts=tmp_path / "artifacts")
    with tracked(config, "mine", "run", {}, tmp_path / "results/mine/pending") as run:
        run.metrics({"loss": 1.0})
    found = command.invoke(main, ["sync", "--config", str(study)])
    assert found.exit_code == 1
    assert "0 runs uploaded to http://127.0.0.1:9, 1 still queued" in found.output
