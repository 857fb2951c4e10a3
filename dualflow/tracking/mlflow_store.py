"""Opening of an MLflow run in a local SQLite file, in another database, or on a server."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dualflow.config import TrackingConfig
from dualflow.errors import CommitError
from dualflow.tracking.database import check_connection, is_database, is_remote_database
from dualflow.tracking.deadline import DeadlineClient
from dualflow.tracking.local_store import LOCK_SECONDS, ensure_local_store
from dualflow.tracking.mlflow_calls import PARENT, is_permanent_error, with_tags
from dualflow.tracking.saved_view import GROUP_TAG
from dualflow.tracking.source_version import source_version

PRIVATE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""Environment by which MLflow neither reports its use nor looks up where to."""
# By default MLflow retries an unreachable server for hours; this environment limits it to seconds.
_ENVIRONMENT = {
    **PRIVATE,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # A pooled connection would go on writing to a SQLite file that was removed or set aside.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}


class DeletedExperimentError(CommitError):
    """An experiment that was deleted in MLflow, which takes no runs until it is restored."""


@dataclass(frozen=True)
class RunKey:
    """Identity of a run.

    Attributes:
        experiment: name of its experiment.
        name: name of the run.
        tags: distinguish runs of the same name.
        continues: whether a finished run of this key is continued, as an evaluation continues its training's run.
    """

    experiment: str
    name: str
    tags: Mapping[str, str]
    continues: bool = False


def load_client(uri: str = "") -> Any:
    """Import MLflow, which takes about a second, and return its client class.

    Args:
        uri: tracking URI that will be opened; for a SQLite file the database modules are imported too.
    """
    os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ})
    first_import = "mlflow" not in sys.modules
    collecting = gc.isenabled()
    gc.disable()
    try:
        from mlflow import MlflowClient

        if uri.startswith("sqlite:"):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        if first_import:
            # Modules live as long as the process. Full collections that visit them take a third of the import's time.
            gc.freeze()
    finally:
        if collecting:
            gc.enable()
    return MlflowClient


def open_run(config: TrackingConfig, key: RunKey, run_id: str | None = None) -> tuple[Any, str]:
    """Return a client, and the id of an open run.

    A given `run_id` is reopened. If the store no longer has it, or none is given, the run that a killed process left
    open under `key` in the group of `config`, or that failed, is continued, or a new run is created.

    Raises:
        ConfigError: the URI cannot be read, or the driver of the database is not installed.
        CommitError: the SQLite file cannot be written, or the experiment was deleted.
        Exception: any error of a store or a server.
    """
    # Processes that create the tables of one database at the same time fail; a local file has a lock of its own.
    with _store_lock(config) if is_remote_database(config.uri) else nullcontext():
        client = open_store(config)
    experiment_id = ensure_experiment(client, config, key.experiment)
    if run_id is not None and _reopen(client, run_id):
        return client, run_id
    # Two processes that open the group at the same time would make two of it.
    with _store_lock(config):
        group = group_key(config, key.experiment)
        # A closed form of the study is the same training in its comparison, which has a run of its own.
        parent = {} if key == group else {PARENT: _group_id(client, experiment_id, group)}
        # Work that failed, such as on a full disk, goes on when it is repeated.
        run_id = _continued(client, experiment_id, key, parent)
        if run_id is not None and _reopen(client, run_id):
            return client, run_id
        return client, _create(client, experiment_id, key, {**parent, GROUP_TAG: group.name} if parent else {})


def group_key(config: TrackingConfig, experiment: str) -> RunKey:
    """Key of the run under which the runs of a study are nested."""
    return RunKey(experiment, config.group, {"level": "group"}, continues=True)


def _group_id(client: Any, experiment_id: str, group: RunKey) -> str:
    """Id of the parent run. It never stays open, because no process owns it."""
    if (existing := _continued(client, experiment_id, group, {})) is not None:
        return existing
    run_id = _create(client, experiment_id, group, {})
    client.set_terminated(run_id)
    return run_id


def _continued(client: Any, experiment_id: str, key: RunKey, parent: Mapping[str, str]) -> str | None:
    """Id of the newest run of a key under its parent that can be continued; None if there is none."""
    status = () if key.continues else ("attributes.status != 'FINISHED'",)
    return find_run(client, experiment_id, {"mlflow.runName": key.name, **key.tags, **parent}, *status)


def find_run(client: Any, experiment_id: str, tags: Mapping[str, str], *conditions: str) -> str | None:
    """Id of the newest run with these tags that meets further `conditions`; None if there is none."""
    runs = client.search_runs([experiment_id], with_tags(tags, *conditions), max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _create(client: Any, experiment_id: str, key: RunKey, tags: Mapping[str, str]) -> str:
    # By default MLflow records the account name and the command line, which are private.
    common = {
        "mlflow.user": "dualflow",
        "mlflow.source.name": "dualflow",
        "mlflow.source.type": "PROJECT",
        **source_version(),
    }
    created = client.create_run(experiment_id, run_name=key.name, tags={**common, **key.tags, **tags})
    return str(created.info.run_id)


def _reopen(client: Any, run_id: str) -> bool:
    """Mark a run as running; return False if the store no longer has it."""
    try:
        client.update_run(run_id, status="RUNNING")
    except Exception as error:
        # A server that is unreachable may still have the run, and a second one would split its records.
        if not is_permanent_error(error):
            raise
        return False
    return True


def open_store(config: TrackingConfig) -> Any:
    """Connect to the store, creating a local SQLite file that does not exist yet or is broken; return the client.

    Raises:
        CommitError: the SQLite file cannot be written.
        ConfigError: the URI cannot be read, or the driver of the database is not installed.
        Exception: any error of a database.
    """
    client_class = load_client(config.uri)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(config.uri)
    if is_remote_database(config.uri):
        check_connection(config.uri)
    # The URI is given here too, because other work of this process may set another one meanwhile.
    if not config.uri.startswith("sqlite:///"):
        return DeadlineClient(client_class(config.uri))
    ensure_local_store(Path(config.uri.removeprefix("sqlite:///")), config.artifacts)
    return client_class(config.uri)


def _store_lock(config: TrackingConfig) -> FileLock:
    """The lock of experiments and groups, which MLflow does not create atomically."""
    config.artifacts.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(config.artifacts.with_suffix(".lock"), timeout=LOCK_SECONDS)


def ensure_experiment(client: Any, config: TrackingConfig, name: str) -> str:
    """Return the id of an experiment, which is created if it does not exist.

    Raises:
        DeletedExperimentError: it was deleted in MLflow.
    """
    location = config.artifacts.resolve().as_uri() if is_database(config.uri) else None
    with _store_lock(config):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            existing: str = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                raise DeletedExperimentError(
                    f"experiment '{name}' was deleted in MLflow; "
                    f"restore it (`mlflow experiments restore -x {existing}`) or rename study.name"
                )
            return existing
        created: str = client.create_experiment(
            name,
            artifact_location=f"{location}/{name}" if location else None,
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    return created
