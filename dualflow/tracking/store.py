"""Where MLflow keeps runs: a local SQLite file, which one process at a time may create, or a server."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dualflow.config import TrackingConfig
from dualflow.errors import ConfigError

LOCK_SECONDS = 120
# An unreachable server must cost seconds, not the hours of MLflow's own retries.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Subject:
    """Which run is meant: its experiment, its name, and tags that tell it from others of that name."""

    experiment: str
    name: str
    tags: Mapping[str, str]


def load_client() -> Any:
    """MLflow's client class, whose import takes seconds."""
    from mlflow import MlflowClient

    return MlflowClient


def open_run(config: TrackingConfig, subject: Subject, run_id: str | None = None) -> str:
    """Start a run, or go on with `run_id` or with one that was left open by a process that was killed; return its id.

    Raises:
        ConfigError: the URI is of the file store, which MLflow no longer offers.
        Exception: whatever a store or a server may raise.
    """
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    import mlflow
    from mlflow import MlflowClient, MlflowException

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(prepare_store(config))
    client = MlflowClient()
    experiment_id = _experiment(client, config, subject.experiment)
    if run_id is None:
        known = {"mlflow.runName": subject.name, **subject.tags}
        match = " and ".join(f"tags.`{key}` = '{value}'" for key, value in known.items())
        open_runs = client.search_runs([experiment_id], f"attributes.status = 'RUNNING' and {match}", max_results=1)
        run_id = open_runs[0].info.run_id if open_runs else None
    if run_id is not None:
        with suppress(MlflowException):  # it was deleted meanwhile
            client.update_run(run_id, status="RUNNING")
            return run_id
    # MLflow would record the account name and the command line; neither belongs to the study.
    private = {"mlflow.user": "dualflow", "mlflow.source.name": "dualflow", "mlflow.source.type": "PROJECT"}
    created: str = client.create_run(experiment_id, run_name=subject.name, tags={**private, **subject.tags}).info.run_id
    return created


def prepare_store(config: TrackingConfig) -> str:
    """Create a local SQLite store if there is none, by one process at a time; return the tracking URI.

    Raises:
        ConfigError: the URI is of the file store, which MLflow no longer offers.
    """
    if config.uri.startswith(("file:", "./", "/")):
        raise ConfigError(f"tracking.uri = {config.uri!r}: expected sqlite:///FILE or a server's http(s) URL")
    if config.uri.startswith("sqlite:///"):
        path = Path(config.uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes that migrate a fresh database at once break it for good.
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            SqlAlchemyStore(config.uri, str(config.artifacts.resolve()))
    return config.uri


def _experiment(client: Any, config: TrackingConfig, name: str) -> str:
    location = config.artifacts.resolve().as_uri() if config.uri.startswith("sqlite:") else None
    config.artifacts.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(config.artifacts.with_suffix(".lock"), timeout=LOCK_SECONDS):
        found = client.get_experiment_by_name(name)
        if found is not None:
            experiment_id: str = found.experiment_id
            return experiment_id
        created: str = client.create_experiment(
            name,
            artifact_location=f"{location}/{name}" if location else None,
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
    return created
