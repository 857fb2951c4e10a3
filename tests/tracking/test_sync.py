"""Records that were queued while the server was unreachable are sent later, once and in order."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow_runs import UNREACHABLE, log_all, read_records, read_runs, unreachable

from dualflow.cli import main
from dualflow.config import TrackingConfig
from dualflow.errors import StoppedError
from dualflow.layout import Layout
from dualflow.tracking import sync as module
from dualflow.tracking.mlflow_store import RunKey
from dualflow.tracking.queue import RecordQueue
from dualflow.tracking.sync import sync, warn_unsent
from dualflow.tracking.tracked_run import Run, tracked


def sync_in_another_process(config, folder, pending):
    """Call `dualflow sync`, which knows of the run only what its queue contains."""
    study = folder / "study.yaml"
    (folder / "mine").mkdir()
    pending.rename(folder / "mine/pending")
    store = f"tracking: {{uri: '{config.uri}', artifacts: '{config.artifacts}'}}"
    study.write_text(f"study: {{name: mine, results: {folder}}}\n{store}\n")
    command = [sys.executable, "-m", "dualflow.cli", "sync", "--config", str(study)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200, check=False)
    assert "1 runs uploaded" in result.stdout, result.stderr
    (folder / "mine/pending").rename(pending)
    assert not list(folder.glob("*.db"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("returns", ["during the training", "after its end", "after it was killed"])
def test_a_run_is_complete_once_the_server_is_back(config, tmp_path, returns):
    """The run contains the same as one whose server was always reachable."""
    online, offline = f"online, {returns}", f"offline, server returns {returns}"
    with tracked(config, "study", online, {}) as run:
        log_all(run)
    away, pending = unreachable(config), tmp_path / "pending"
    training = tracked(away, "study", offline, {}, pending)
    run = training.__enter__()
    log_all(run)
    if returns == "during the training":
        run.config = config
    if returns != "after it was killed":
        training.__exit__(None, None, None)
    else:
        # Its end is not recorded. Without this line a garbage collection would end it within a later test.
        training.__exit__(StoppedError, StoppedError("killed"), None)
        # The resumed training sends the queued records first.
        with tracked(config, "study", offline, {}, pending):
            pass
    if returns == "after its end":
        assert sync(away, pending) == (0, 1)
        sync_in_another_process(config, tmp_path, pending)
    assert sync(config, pending) == (0, 0)
    assert read_records(config, offline) == read_records(config, online)
    assert not [path for path in pending.iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_a_rejected_record_does_not_hold_up_the_others(config, tmp_path):
    """A changed parameter keeps its first value; a file that was removed is left out."""
    pending = tmp_path / "pending"
    with tracked(unreachable(config), "study", "rejected", {}, pending) as run:
        run.parameters({"a": 1})
        run.parameters({"a": 2, "b": 3})
        run.file(tmp_path / "removed")
        run.metrics({"loss": 1.0})
    assert sync(config, pending) == (1, 0)
    status, parameters, history, *_ = read_records(config, "rejected")
    assert (status, parameters, history) == ("FINISHED", {"a": "1", "b": "3"}, [(0, 1.0)])
    assert [path.name for path in run.queue.folder.iterdir()] == ["rejected-00000002.json"]
    assert sync(config, pending) == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_different_trainings_do_not_share_a_run(config, tmp_path):
    """The same name with other tags is another run, and so is a training that starts again after its end."""
    pending = tmp_path / "pending"
    for training, loss in (("a", 1.0), ("b", 2.0), ("b", 3.0)):
        with tracked(unreachable(config), "study", "shared", {"training": training}, pending) as run:
            run.metrics({"loss": loss})
    assert sync(config, pending) == (2, 0)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    runs = client.search_runs([experiment], "tags.`mlflow.runName` = 'shared'")
    contents = sorted((run.data.tags["training"], run.data.metrics["loss"], run.info.status) for run in runs)
    assert contents == [("a", 1.0, "FINISHED"), ("b", 2.0, "FINISHED"), ("b", 3.0, "FINISHED")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_a_late_upload_leaves_the_later_run_current(config, tmp_path):
    """What counts is when a run finished, not when its records arrived."""
    pending = tmp_path / "pending"
    for training, store in (("first", unreachable(config)), ("second", unreachable(config)), ("third", config)):
        with tracked(store, "study", "late", {"training": training}, pending):
            time.sleep(0.01)
    assert sync(config, pending) == (2, 0)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    runs = client.search_runs([experiment], "tags.`mlflow.runName` = 'late'")
    current = {run.data.tags["training"]: run.data.tags.get("current") for run in runs}
    assert current == {"first": "false", "second": "false", "third": "true"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_records_of_an_earlier_version_are_sent(config, tmp_path):
    """An end without a time counts as now; a file without a digest is kept, and does not hold up the others."""
    pending, path = tmp_path / "pending", tmp_path / "weights"
    path.write_text("x")
    with tracked(unreachable(config), "study", "early", {}, pending) as run:
        run.metrics({"loss": 1.0})
        run.file(path)
    for file in run.queue.files():
        record = json.loads(file.read_text())
        record["arguments"].pop("digest", None)
        if record["call"] == "end":
            record["arguments"].pop("milliseconds")
        file.write_text(json.dumps(record))
    assert sync(config, pending) == (1, 0)
    status, _, history, *_ = read_records(config, "early")
    assert (status, history) == ("FINISHED", [(0, 1.0)])


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_a_run_never_gets_the_weights_of_a_later_training(config, tmp_path):
    """A file that was written anew while its record waited is left out."""
    pending, weights = tmp_path / "pending", tmp_path / "model.safetensors"
    for training in ("first", "second"):
        weights.write_text(training)
        with tracked(unreachable(config), "study", "weights", {"training": training}, pending) as run:
            run.file(weights)
            run.metrics({"loss": 1.0})
    assert sync(config, pending) == (2, 0)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    runs = client.search_runs([experiment], "tags.`mlflow.runName` = 'weights'")
    files = {run.data.tags["training"]: [file.path for file in client.list_artifacts(run.info.run_id)] for run in runs}
    assert files == {"first": [], "second": ["model.safetensors"]}


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_an_upload_that_pauses_after_an_end_does_not_join_runs(config, tmp_path):
    """Each upload sends one record; the first after the end is of the next run."""
    for loss in (1.0, 2.0):
        with tracked(unreachable(config), "study", "paused", {}, tmp_path / "pending") as run:
            run.metrics({"loss": loss})
    for _ in range(len(run.queue)):
        queue = RecordQueue.load(run.queue.folder)
        Run(config, RunKey("study", "paused", {}), queue).flush(0.0)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    runs = client.search_runs([experiment], "tags.`mlflow.runName` = 'paused'")
    assert sorted((run.data.metrics["loss"], run.info.status) for run in runs) == [(1, "FINISHED"), (2, "FINISHED")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("lost", ["run", "store"])
def test_records_of_a_lost_run_are_delivered_once(created_store, tmp_path, lost):
    """The store was made anew, or the run was deleted: the queued records form a new run, each exactly once."""
    shutil.copytree(created_store[0] / "store", tmp_path / "store")
    store, pending = tmp_path / "store" / "mlflow.db", tmp_path / "pending"
    config = TrackingConfig(uri=f"sqlite:///{store}", artifacts=tmp_path / "store" / "artifacts")
    training = tracked(config, "study", "survivor", {}, pending)
    run = training.__enter__()
    first_id = run.run_id
    run.config, run._client = unreachable(config), None
    log_all(run)
    training.__exit__(None, None, None)
    assert len(run.queue) > 5
    if lost == "run":
        MlflowClient(config.uri).delete_run(first_id)
    else:
        store.unlink()
    assert sync(config, pending) == (1, 0)
    assert sync(config, pending) == (0, 0)
    status, parameters, history, images, *_ = read_records(config, "survivor")
    assert (status, parameters, images) == ("FINISHED", {"train.steps": "4"}, 6)
    assert history == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert read_runs(config)["survivor"].info.run_id != first_id
    assert not [path for path in pending.iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_a_training_outlives_its_store(created_store, tmp_path):
    """Points that are logged after the store was removed go to a new run; none is rejected."""
    shutil.copytree(created_store[0] / "store", tmp_path / "store")
    store = tmp_path / "store" / "mlflow.db"
    config = TrackingConfig(uri=f"sqlite:///{store}", artifacts=tmp_path / "store" / "artifacts")
    with tracked(config, "study", "outliving", {}, tmp_path / "pending") as run:
        run.metrics({"loss": 0.0}, 0)
        store.unlink()
        run.metrics({"loss": 1.0}, 1)
        run.metrics({"loss": 2.0}, 2)
    assert read_records(config, "outliving")[::2][:2] == ("FINISHED", [(1, 1.0), (2, 2.0)])
    assert not list(tmp_path.glob("pending/*/*.json"))


def test_records_that_remain_are_reported(tmp_path, capsys):
    """With their number and the command that uploads them, also of a queue whose description is unreadable."""
    config = TrackingConfig(uri=UNREACHABLE, artifacts=tmp_path / "artifacts")
    warn_unsent(tmp_path)
    assert capsys.readouterr().err == ""
    with tracked(config, "mine", "run", {}, tmp_path) as run:
        run.metrics({"loss": 1.0})
    (run.queue.folder / "run.json").write_text("{")
    capsys.readouterr()
    warn_unsent(tmp_path)
    assert capsys.readouterr().err == (
        f"warning: MLflow: 2 tracking records are not uploaded, they are queued in {tmp_path}; "
        "`dualflow sync` with the same --config uploads them\n"
    )
    assert sync(config, tmp_path) == (0, 1)


def test_the_command_reports_how_many_runs_are_queued(tmp_path):
    """Its exit code is 0 once all records are sent, and 1 while the server is unreachable."""
    study = tmp_path / "study.yaml"
    study.write_text(f"study: {{name: mine, results: {tmp_path}/results}}\ntracking: {{uri: '{UNREACHABLE}'}}\n")
    command = CliRunner()
    assert "0 runs uploaded" in command.invoke(main, ["sync", "--config", str(study)]).output
    config = TrackingConfig(uri=UNREACHABLE, artifacts=tmp_path / "artifacts")
    with tracked(config, "mine", "run", {}, tmp_path / "results/mine/pending") as run:
        run.metrics({"loss": 1.0})
    result = command.invoke(main, ["sync", "--config", str(study)])
    assert result.exit_code == 1
    assert "0 runs uploaded to http://127.0.0.1:9, 1 still queued" in result.output


def test_queues_of_folds_are_found(tmp_path, monkeypatch):
    """The records of a comparison's folds are uploaded with those of the study."""
    layout, folders = Layout(tmp_path / "x"), []
    fold = layout.fold(3, 1) / "x" / "pending"
    fold.mkdir(parents=True)
    monkeypatch.setattr(module, "sync", lambda config, pending: (folders.append(pending), (1, 2))[1])
    assert module.sync_all(TrackingConfig(), layout) == (2, 4)
    assert folders == [layout.pending_records, fold]
