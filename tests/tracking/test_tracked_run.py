"""Tracking never stops a training, whatever happens to the server or the disk."""

from math import nan
from threading import Semaphore

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow_runs import EXPERIMENT, UNREACHABLE, read_records, read_runs

from dualflow.config import TrackingConfig, parse_config, public_values
from dualflow.errors import StoppedError
from dualflow.tracking import tracked_run
from dualflow.tracking.mlflow_store import RunKey
from dualflow.tracking.queue import RecordQueue
from dualflow.tracking.source_version import COMMIT
from dualflow.tracking.sync import sync
from dualflow.tracking.tracked_run import Run, group_run, tracked


def test_the_recorded_configuration_contains_no_path(tmp_path):
    """All other values are recorded."""
    values = public_values(parse_config({"study": {"name": "mine", "bids": tmp_path, "results": tmp_path / "out"}}))
    assert str(tmp_path) not in str(values)
    assert values["study"]["name"] == "mine"
    assert values["train"]["steps"] == 600
    assert "tracking" not in values


@pytest.mark.slow
def test_a_stopped_training_resumes_the_same_run(config):
    """SIGTERM leaves the run open for the process that resumes the training."""
    with pytest.raises(StoppedError), tracked(config, "study", "preempted", {"model": "toy"}) as first:
        raise StoppedError("stopped by SIGTERM")
    assert read_runs(config)["preempted"].info.status == "RUNNING"
    with tracked(config, "study", "preempted", {"model": "toy"}) as second:
        assert second.run_id == first.run_id
    assert read_runs(config)["preempted"].info.status == "FINISHED"


@pytest.mark.slow
def test_a_failed_training_is_marked_as_failed(config):
    """The error is passed on."""

    def fail():
        with tracked(config, "study", "failing", {}) as run:
            run.metrics({"loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read_runs(config)["failing"].info.status == "FAILED"


def test_an_unreachable_server_is_reported_once(tmp_path, capsys, monkeypatch):
    """The block runs to its end, the records are queued, and the last warning names their folder; no password."""
    monkeypatch.setattr(tracked_run, "_warned", set())
    uri = UNREACHABLE.replace("//", "//user:secret@")
    config = TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts")
    with tracked(config, "study", "offline seed 0", {}, tmp_path / "pending") as run:
        run.parameters({"a": 1})
        run.metrics({"loss": 1.0})
        run.table(pd.DataFrame({"a": [1]}), "table.json")
        with run.system():
            finished = True
    lines = capsys.readouterr().err.splitlines()
    assert finished
    assert run.run_id is None
    assert lines[0].startswith("warning: MLflow:")
    assert "secret" not in lines[0]
    assert lines[1:] == [
        f"warning: MLflow: 4 records of 'offline seed 0' are queued in {run.queue.folder}; `dualflow sync` uploads them"
    ]
    assert run.queue.folder.name.startswith("offline-seed-0-")


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_a_record_that_the_store_rejects_is_kept(config, tmp_path, capsys):
    """The warning says where; it is not sent again."""
    with tracked(config, "study", "invalid name", {}, tmp_path / "pending") as run:
        run.metrics({"a$b": 1.0})
        run.metrics({"loss": 2.0})
    assert [path.name for path in run.queue.folder.iterdir()] == ["rejected-0.json"]
    assert "the store rejects this record, which is kept as rejected-*.json" in capsys.readouterr().err
    assert read_runs(config)["invalid name"].data.metrics == {"loss": 2.0}
    assert sync(config, tmp_path / "pending") == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_wait")
def test_records_of_an_interruption_join_the_open_run(config, tmp_path, monkeypatch):
    """Records that were logged while the server was unreachable keep their place."""
    call = tracked_run.CALLS["metrics"]

    def refuse(*_):
        raise ConnectionError("refused")

    with tracked(config, "study", "gap", {}, tmp_path / "pending") as run:
        first_id = run.run_id
        for step in range(6):
            monkeypatch.setitem(tracked_run.CALLS, "metrics", refuse if step in (2, 3) else call)
            run.metrics({"loss": float(step)}, step)
    assert read_runs(config)["gap"].info.run_id == first_id
    assert read_records(config, "gap")[2] == [(step, float(step)) for step in range(6)]


def test_a_queue_that_cannot_be_written_only_warns(tmp_path, monkeypatch, capsys):
    """Neither the server nor the disk accepts the record, and the training continues."""
    monkeypatch.setattr(tracked_run, "_warned", set())
    (tmp_path / "pending").write_text("a file in place of the folder")
    config = TrackingConfig(uri=UNREACHABLE, artifacts=tmp_path / "artifacts")
    with tracked(config, "study", "lost", {}, tmp_path / "pending") as run:
        run.metrics({"loss": 1.0})
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("no_wait")
def test_failures_that_differ_in_an_address_are_reported_once(capsys, monkeypatch, tmp_path):
    """The address of an object in the message does not make a failure new."""
    monkeypatch.setattr(tracked_run, "_warned", set())
    errors = iter(ConnectionError(f"<Connection object at 0x7f00{number}> refused") for number in range(3))

    def fail(client):
        raise next(errors)

    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=tmp_path / "artifacts")
    run = Run(config, RunKey("study", "run", {}))
    for _ in range(3):
        run._try(fail)
    assert capsys.readouterr().err.count("warning: MLflow: <Connection object> refused") == 1


@pytest.mark.slow
def test_system_metrics_are_logged_during_the_training(config, monkeypatch):
    """Their names end in their unit; a resumed run continues their steps."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    published, publish = Semaphore(0), SystemMetricsMonitor.publish_metrics

    def publish_and_count(monitor, metrics):
        publish(monitor, metrics)
        published.release()

    def preempted():
        for _ in range(2):
            assert published.acquire(timeout=60), "the monitor published no metrics within 60 s"
        raise StoppedError("preempted")

    monkeypatch.setattr(SystemMetricsMonitor, "publish_metrics", publish_and_count)
    for _ in range(2):
        with pytest.raises(StoppedError), tracked(config, "study", "watched", {}) as run, run.system():
            preempted()
    metrics = read_runs(config)["watched"].data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert "system/cpu_utilization_percentage" in metrics
    history = MlflowClient(config.uri).get_metric_history(run.run_id, "system/cpu_utilization_percentage")
    steps = [metric.step for metric in history]
    assert len(steps) >= 4
    assert sorted(steps) == list(range(len(steps)))


def points(config, name):
    run, client = read_runs(config)[name], MlflowClient(config.uri)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]


def runs_named(config, name):
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    return [run.info.status for run in client.search_runs([experiment]) if run.info.run_name == name]


@pytest.mark.parametrize("killed", ["before the end", "after the end", "after the manifest", "failed"])
def test_work_that_was_killed_is_one_run_with_each_point_once(config, tmp_path, killed):
    """Wherever it was killed, repeated or only delivered later, the run is finished and has no point twice."""
    key = RunKey(EXPERIMENT, f"killed {killed}", {"training": "1"})
    first = Run(config, key, RecordQueue.open(tmp_path, key))
    first.begin()
    first.metrics({"loss": 2.0}, 1)
    first.metrics({"loss": 1.0}, 2)
    if killed == "failed":
        first.end("FAILED")
    elif killed != "before the end":
        first.finish()
    if killed == "after the manifest":
        sync(config, tmp_path)
    else:
        with tracked(config, EXPERIMENT, key.name, key.tags, tmp_path) as run:
            run.metrics({"loss": 1.0}, 2)
            run.metrics({"loss": 0.5}, 3)
            run.finish()
    repeated = [] if killed == "after the manifest" else [(3, 0.5)]
    assert points(config, key.name) == [(1, 2.0), (2, 1.0), *repeated]
    assert runs_named(config, key.name) == ["FINISHED"]
    assert not list(tmp_path.glob("*/*.json"))


def test_an_error_after_the_end_was_queued_is_a_failure(config, tmp_path):
    """Such as a disk that is full when the last output is written."""

    def fail():
        with tracked(config, EXPERIMENT, "late failure", {}, tmp_path) as run:
            run.finish()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert runs_named(config, "late failure") == ["FAILED"]


@pytest.fixture
def local(config):
    """The shared store with a group of its own."""
    return config.model_copy(update={"group": "group"})


def run_of(config, run_id):
    return MlflowClient(config.uri).get_run(run_id)


def test_runs_are_nested_under_their_group(local):
    """The parent is made once, never stays open, and lasts from the first child's start to the last one's end."""
    with tracked(local, EXPERIMENT, "child", {"seed": "1"}) as first:
        parent = run_of(local, first.run_id).data.tags["mlflow.parentRunId"]
        assert run_of(local, first.run_id).data.tags["group"] == run_of(local, parent).info.run_name == "group"
        assert run_of(local, parent).info.status == "FINISHED"
        begun = run_of(local, parent).info.end_time
    with tracked(local, EXPERIMENT, "child", {"seed": "2"}) as second:
        assert run_of(local, second.run_id).data.tags["mlflow.parentRunId"] == parent
    assert run_of(local, parent).info.end_time > begun
    with group_run(local, EXPERIMENT) as group:
        group.describe("# Results of {run_id}")
        assert group.run_id == parent
    assert run_of(local, parent).data.tags["mlflow.note.content"] == f"# Results of {parent}"
    assert "mlflow.parentRunId" not in run_of(local, parent).data.tags


def test_a_continued_group_has_the_code_of_its_last_results(local, monkeypatch):
    """The commit of the code that created the run would mislead, also if the later code has none."""
    config = local.model_copy(update={"group": "renewed"})
    for version in ({"dualflow.version": "1", COMMIT: "abc"}, {"dualflow.version": "2"}):
        monkeypatch.setattr(tracked_run, "source_version", lambda version=version: version)
        with group_run(config, EXPERIMENT) as run:
            pass
        tags = run_of(config, run.run_id).data.tags
        assert (tags["dualflow.version"], tags[COMMIT]) == (version["dualflow.version"], version.get(COMMIT, ""))


def test_another_training_replaces_the_run_of_the_earlier_one(local):
    """Of the runs of a name in a group the last finished one is current; other names and groups are left alone."""
    elsewhere = local.model_copy(update={"group": "comparison"})
    runs = {}
    for config, name, training in (
        (local, "flow seed 0", "1"),
        (local, "flow seed 1", "1"),
        (elsewhere, "flow seed 0", "3"),
        (local, "flow seed 0", "2"),
    ):
        with tracked(config, EXPERIMENT, name, {"training": training}) as run:
            runs[config.group, name, training] = run.run_id
    first, second = ("group", "flow seed 0", "1"), ("group", "flow seed 0", "2")

    def current():
        return {key: run_of(local, run_id).data.tags["current"] for key, run_id in runs.items()}

    assert current() == dict.fromkeys(runs, "true") | {first: "false"}
    with pytest.raises(OSError, match="full"), tracked(local, EXPERIMENT, "flow seed 0", {"training": "3"}):
        raise OSError("full")
    assert current() == dict.fromkeys(runs, "true") | {first: "false"}  # a training that failed replaces none
    with tracked(local, EXPERIMENT, "flow seed 0", {"training": "1"}, continues=True) as evaluation:
        assert evaluation.run_id == runs[first]
    assert current() == dict.fromkeys(runs, "true") | {second: "false"}  # the model that is evaluated is in use


def test_runs_of_models_that_a_group_no_longer_has_are_replaced(local):
    """A model that comes back is current again. Analyses, which have no seed, and other groups are left alone."""
    config, elsewhere = (local.model_copy(update={"group": group}) for group in ("members", "others"))
    runs = {}
    for place, name, tags in (
        (config, "flow seed 0", {"seed": "0", "training": "1"}),
        (config, "flow seed 0", {"seed": "0", "training": "2"}),
        (config, "unet seed 0", {"seed": "0", "training": "3"}),
        (config, "analysis main", {"seed": ""}),
        (elsewhere, "unet seed 0", {"seed": "0"}),
    ):
        with tracked(place, EXPERIMENT, name, tags) as run:
            runs[place.group, name, tags.get("training")] = run.run_id

    def replaced_after(names):
        with group_run(config, EXPERIMENT) as parent:
            parent.members(names)
        values = {key: run_of(local, run_id).data.tags["current"] for key, run_id in runs.items()}
        return {key for key, value in values.items() if value == "false"}

    first, unet = ("members", "flow seed 0", "1"), ("members", "unet seed 0", "3")
    assert replaced_after(["flow seed 0", "unet seed 0"]) == {first}
    assert replaced_after(["flow seed 0"]) == {first, unet}
    assert replaced_after(["unet seed 0"]) == {first, ("members", "flow seed 0", "2")}
    assert replaced_after(["flow seed 0", "unet seed 0"]) == {first}


def test_a_finished_training_ends_those_that_were_killed_before_it(local):
    """Inputs that change after a kill make another training; open runs of other names, groups and later ones stay."""

    def begun(config, name, training):
        run = Run(config, RunKey(EXPERIMENT, name, {"training": training}))
        run.begin()
        return run

    def status(run):
        return run_of(local, run.run_id).info.status

    elsewhere = local.model_copy(update={"group": "another group"})
    killed, other = begun(local, "killed flow", "1"), begun(local, "another flow", "1")
    apart = begun(elsewhere, "killed flow", "1")
    with tracked(local, EXPERIMENT, "killed flow", {"training": "2"}):
        pass
    assert (status(killed), status(other), status(apart)) == ("KILLED", "RUNNING", "RUNNING")
    waited, later = begun(local, "killed flow", "3"), begun(local, "killed flow", "4")
    begin = run_of(local, later.run_id).info.start_time
    waited._log("end", {"status": "FINISHED", "milliseconds": begin - 1})
    assert (status(waited), status(later)) == ("FINISHED", "RUNNING")
    resumed = begun(local, "killed flow", "1")
    assert (resumed.run_id, status(resumed)) == (killed.run_id, "RUNNING")
    for run in (resumed, other, apart, later):
        run.end("FINISHED")


def test_a_deleted_group_does_not_reject_the_end_of_a_child(local, tmp_path):
    """Someone may delete the parent in MLflow while a child runs."""
    config = local.model_copy(update={"group": "deleted group"})
    with tracked(config, EXPERIMENT, "orphan", {}, tmp_path) as run:
        MlflowClient(config.uri).delete_run(run_of(config, run.run_id).data.tags["mlflow.parentRunId"])
    assert run_of(config, run.run_id).info.status == "FINISHED"
    assert not list(tmp_path.glob("*/*.json"))


@pytest.mark.usefixtures("no_wait")
def test_records_of_a_deleted_experiment_wait_until_it_is_restored(config, tmp_path, monkeypatch, capsys):
    """The warnings say what to do first: until then `dualflow sync` uploads nothing."""
    monkeypatch.setattr(tracked_run, "_warned", set())
    client = MlflowClient(config.uri)
    experiment = client.create_experiment("deleted")
    client.delete_experiment(experiment)
    with tracked(config, "deleted", "run", {}, tmp_path) as run:
        run.metrics({"loss": 1.0})
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert f"restore it (`mlflow experiments restore -x {experiment}`) or rename study.name" in warnings[0]
    assert all(warning.endswith("until the experiment is restored") for warning in warnings)
    client.restore_experiment(experiment)
    assert sync(config, tmp_path) == (1, 0)
    runs = client.search_runs([experiment], "attributes.run_name = 'run'")
    assert [run.data.metrics for run in runs] == [{"loss": 1.0}]


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("offline", [False, True], ids=["online", "training and evaluation offline"])
def test_an_evaluation_continues_the_run_of_its_training(local, tmp_path, monkeypatch, offline):
    """Its scores are on the training's finished run; a repetition changes only other values."""
    name, tags = f"evaluated {offline}", {"training": "1"}
    monkeypatch.setattr(tracked_run, "_warned", set())
    config = local.model_copy(update={"uri": UNREACHABLE}) if offline else local
    with tracked(config, EXPERIMENT, name, tags, tmp_path) as training:
        training.metrics({"loss": 1.0}, 1)
    for crps in (0.3, 0.3, 0.4):
        with tracked(config, EXPERIMENT, name, tags, tmp_path, continues=True) as evaluation:
            evaluation.scores({"test/mae_SUVR": 0.1, "test/crps_SUVR": crps, "test/none": float("nan")}, "test/")
    if offline:
        assert sync(local.model_copy(update={"group": "another"}), tmp_path) == (1, 0)
    assert runs_named(local, name) == ["FINISHED"]
    run = read_runs(local)[name]
    assert run_of(local, run.data.tags["mlflow.parentRunId"]).info.run_name == local.group
    assert run.data.metrics == {"loss": 1.0, "test/mae_SUVR": 0.1, "test/crps_SUVR": 0.4}
    history = MlflowClient(local.uri).get_metric_history(run.info.run_id, "test/crps_SUVR")
    assert [(point.step, point.value) for point in history] == [(0, 0.3), (1, 0.4)]


def test_the_same_training_in_two_groups_is_two_runs(local):
    """A closed form is trained identically in a study and in its comparison; each evaluation goes to its own run."""
    groups = [local.model_copy(update={"group": name}) for name in ("study", "its comparison")]
    runs = {}
    for config in groups:
        with tracked(config, EXPERIMENT, "closed form", {"training": "1"}) as run:
            runs[config.group] = run.run_id
    for config in groups:
        with tracked(config, EXPERIMENT, "closed form", {"training": "1"}, continues=True) as evaluation:
            assert evaluation.run_id == runs[config.group]


def test_scores_that_are_no_longer_computed_have_no_value(local):
    """MLflow deletes no metric, so they become NaN, once; metrics of other groups stay, and a score may come back."""
    name, run_ids = "stale scores", set()
    evaluations = [{"test/mae": 0.1, "test/bits": 2.0}, {"test/mae": 0.1}, {"test/mae": 0.1}]
    for scores in [*evaluations, {"test/mae": 0.2, "test/bits": 2.0}, {"test/mae": 0.2, "test/bits": float("inf")}]:
        with tracked(local, EXPERIMENT, name, {"training": "1"}, continues=True) as run:
            run.metrics({"train/loss": 1.0}, 1)
            run.scores(scores, "test/")
            run_ids.add(run.run_id)
    (run_id,) = run_ids
    assert run_of(local, run_id).data.metrics == {
        "train/loss": 1.0, "test/mae": 0.2, "test/bits": pytest.approx(nan, nan_ok=True),
    }  # fmt: skip
    history = MlflowClient(local.uri).get_metric_history(run_id, "test/bits")
    assert [(point.step, str(point.value)) for point in history] == [(0, "2.0"), (1, "nan"), (2, "2.0"), (3, "nan")]
