"""MLflow, and the rule that tracking never stops the science: what cannot be delivered is warned about, not raised.

The numbers themselves are kept beside the model in any case; MLflow is where runs are looked at and compared.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dualflow.config import TrackingConfig
from dualflow.errors import ConfigError, StoppedError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

LOCK_SECONDS = 120
# An unreachable server must cost seconds, not the hours of MLflow's own retries.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Run:
    """One MLflow run; every method either delivers or warns once and lets the caller go on.

    Args:
        run_id: of the run, or None if it could not be started.
    """

    def __init__(self, run_id: str | None) -> None:
        self.run_id = run_id

    def parameters(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Log configuration values, nested ones with dots in their names."""
        flat = dict(_flatten(values, prefix))
        self._deliver(lambda client: [client.log_param(self.run_id, key, str(v)[:500]) for key, v in flat.items()])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log finite numbers at a step."""
        finite = {key: float(value) for key, value in values.items() if abs(value) < float("inf")}
        self._deliver(lambda client: [client.log_metric(self.run_id, k, v, step=step) for k, v in finite.items()])

    def image(self, pixels: np.ndarray[Any, Any], key: str, step: int) -> None:
        """Log a picture with values in [0, 1] to the image grid."""
        self._deliver(lambda client: client.log_image(self.run_id, pixels, key=key, step=step, synchronous=True))

    def figure(self, figure: Figure, name: str) -> None:
        """Log a figure under `name`."""
        self._deliver(lambda client: client.log_figure(self.run_id, figure, name))

    def table(self, frame: pd.DataFrame, name: str) -> None:
        """Log a table under `name`, a .json file."""
        self._deliver(lambda client: client.log_table(self.run_id, frame, name))

    def data(self, frame: pd.DataFrame, name: str, context: str) -> None:
        """Log which scans were used, with a digest."""

        def deliver(client: Any) -> None:
            import mlflow
            from mlflow.data.code_dataset_source import CodeDatasetSource
            from mlflow.entities import DatasetInput, InputTag

            # Without a source, MLflow would take the account name and the path of the script.
            source = CodeDatasetSource(tags={"mlflow.source.name": "dualflow"})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice on integer columns of a table that is only recorded
                dataset = mlflow.data.from_pandas(frame, source=source, name=name)
            tag = InputTag("mlflow.data.context", context)
            client.log_inputs(self.run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])

        self._deliver(deliver)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._deliver(lambda client: client.log_artifact(self.run_id, str(path), folder))

    def text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self._deliver(lambda client: client.log_text(self.run_id, text, name))

    def _deliver(self, action: Callable[[Any], Any]) -> None:
        if self.run_id is None:
            return
        try:
            from mlflow import MlflowClient

            action(MlflowClient())
        except Exception as error:  # whatever a store or a server may raise must not stop the science
            _warn(error)


@contextmanager
def tracked(
    config: TrackingConfig, experiment: str, name: str, tags: Mapping[str, str], run_id: str | None = None
) -> Iterator[Run]:
    """Open a run in `experiment`, or go on with `run_id`; close it as finished or failed.

    A run left open under the same name and tags by a process that was killed is taken up again, so that a resumed
    training is one run.

    Raises:
        ConfigError: the URI is of the file store, which MLflow no longer offers.
    """
    run = Run(_start(config, experiment, name, tags, run_id))
    status: str | None = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except StoppedError:  # it will go on, as the same run
        status = None
        raise
    finally:
        if status is not None:
            run._deliver(lambda client: client.set_terminated(run.run_id, status))


def _start(
    config: TrackingConfig, experiment: str, name: str, tags: Mapping[str, str], run_id: str | None
) -> str | None:
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    try:
        import mlflow
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        mlflow.set_tracking_uri(prepare_store(config))
        client = MlflowClient()
        experiment_id = _experiment(client, config, experiment)
        if run_id is None:
            match = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {"mlflow.runName": name, **tags}.items())
            open_runs = client.search_runs([experiment_id], f"attributes.status = 'RUNNING' and {match}", max_results=1)
            run_id = open_runs[0].info.run_id if open_runs else None
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
            return run_id
        # MLflow would record the account name and the command line; neither belongs to the study.
        private = {"mlflow.user": "dualflow", "mlflow.source.name": "dualflow", "mlflow.source.type": "PROJECT"}
        created: str = client.create_run(experiment_id, run_name=name, tags={**private, **tags}).info.run_id
    except ConfigError:  # to be told at once, for it would be wrong in every run
        raise
    except Exception as error:  # whatever a store or a server may raise must not stop the science
        _warn(error)
        return None
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


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value


_warned: set[str] = set()


def _warn(error: Exception) -> None:
    # An address of an object in the message would make every failure look new.
    reason = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))[:300] or type(error).__name__
    if reason not in _warned:
        _warned.add(reason)
        print(f"warning: MLflow: {reason}; going on without it, results are kept beside the model", file=sys.stderr)
