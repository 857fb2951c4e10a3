"""An MLflow run is opened once, in a store that is created once."""

import gc
import sys
from unittest.mock import Mock

import mlflow
import pytest
from mlflow_runs import UNREACHABLE, read_runs

from dualflow.config import TrackingConfig
from dualflow.errors import ConfigError
from dualflow.tracking import mlflow_store as module
from dualflow.tracking.mlflow_store import RunKey, load_client, open_run
from dualflow.tracking.tracked_run import tracked


@pytest.mark.slow
def test_two_processes_create_a_store_at_once(created_store, config):
    """Both record everything without a warning; non-finite values are left out."""
    folder, outputs = created_store
    assert not [text for output in outputs for text in output if "warning:" in text]
    for name in ("first", "second"):
        run = read_runs(config)[name]
        assert run.info.status == "FINISHED"
        assert run.data.params == {"train.steps": "4", "train.rates": "[1, 2]", "name": name}
        assert run.data.metrics == {"loss": 1.5}
        assert len(run.inputs.dataset_inputs) == 1
        files = folder / "store/artifacts/study" / run.info.run_id / "artifacts"
        assert [path.name for path in files.rglob("*.*")] == ["hello.txt"]


@pytest.mark.slow
def test_a_run_left_open_by_a_killed_process_is_continued(config):
    """The same name and tags continue one run; other tags start another; so does the same key after the end."""
    interrupted = tracked(config, "study", "resumed", {"seed": "1"})
    run_id = interrupted.__enter__().run_id
    with tracked(config, "study", "resumed", {"seed": "2"}) as other:
        assert other.run_id not in (run_id, None)
    with tracked(config, "study", "resumed", {"seed": "1"}) as resumed:
        assert resumed.run_id == run_id
    with tracked(config, "study", "resumed", {"seed": "1"}) as later:
        assert later.run_id not in (run_id, None)
    interrupted.__exit__(None, None, None)


@pytest.mark.slow
def test_a_deleted_run_is_replaced(config):
    """A run id that the store no longer has opens a new run."""
    _, run_id = open_run(config, RunKey("study", "deleted", {}), "0" * 32)
    assert run_id != "0" * 32


def test_a_store_is_opened_whatever_other_work_sets(config, monkeypatch):
    """The tracking URI of the process may change while a local store is prepared."""
    monkeypatch.setattr(module, "ensure_local_store", lambda *_: mlflow.set_tracking_uri(UNREACHABLE))
    assert module.open_store(config).tracking_uri == config.uri


@pytest.mark.parametrize(
    ("uri", "is_local"),
    [("sqlite:///store.db", True), ("postgresql://host/mlflow", True), ("http://127.0.0.1:5000", False)],
)
def test_artifacts_of_a_database_are_files_of_the_configured_folder(tmp_path, uri, is_local):
    """Without a server, MLflow would write them to the working folder."""
    client = Mock(get_experiment_by_name=lambda _name: None, create_experiment=Mock(return_value="1"))
    module.ensure_experiment(client, TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts"), "study")
    location = client.create_experiment.call_args.kwargs["artifact_location"]
    assert location == (f"{tmp_path.as_uri()}/artifacts/study" if is_local else None)


def test_a_missing_driver_of_a_database_ends_the_work(tmp_path, monkeypatch):
    """It is not queued: no later attempt could succeed."""
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    uri = "postgresql://person:secret@127.0.0.1/mlflow"
    config = TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts")
    with pytest.raises(ConfigError, match="psycopg2-binary"), tracked(config, "study", "run", {}):
        pass


@pytest.mark.slow
def test_an_existing_store_is_opened_once_in_a_process(config, monkeypatch):
    """MLflow checks the schema of a file only when the first run opens it."""
    from mlflow.store.db import utils

    checks = []
    monkeypatch.setattr(utils, "_verify_schema", checks.append)
    for name in ("one run", "another run"):
        open_run(config, RunKey("study", name, {}))
    assert len(checks) <= 1


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_restored_after_the_import(enabled):
    """It is off during the import only."""
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        load_client("sqlite:///unused")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
