"""MLflow, and the rule that tracking never stops the science: what cannot be delivered waits, and is delivered later.

The numbers themselves are kept beside the model in any case; MLflow is where runs are looked at and compared.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualflow.config import TrackingConfig
from dualflow.errors import ConfigError, StoppedError
from dualflow.training.outbox import Outbox
from dualflow.training.store import Subject, open_run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

RETRY_S = 60.0
"""How long a server that did not answer is left alone."""


class Run:
    """One MLflow run; every method either delivers, or warns once, keeps what it was given, and lets the caller go on.

    Args:
        config: where runs are recorded.
        subject: which run it is; None for one that is recorded nowhere.
        outbox: folder for what cannot be delivered; None to let it go.
        run_id: of a run to go on with.
    """

    def __init__(
        self,
        config: TrackingConfig | None = None,
        subject: Subject | None = None,
        outbox: Path | None = None,
        run_id: str | None = None,
    ) -> None:
        self.config, self.subject, self.run_id = config, subject, run_id
        self.outbox = None
        if outbox is not None and subject is not None:
            known = {"experiment": subject.experiment, "name": subject.name, "tags": dict(subject.tags)}
            left = Outbox.load(outbox)
            # Of an earlier attempt at the same run: what it has to say comes first.
            if left is not None and all(left.run.get(key) == value for key, value in known.items()):
                self.outbox, self.run_id = left, run_id or left.run.get("run_id")
            else:
                self.outbox = Outbox(outbox, known)
        self._failed_at = -RETRY_S

    def parameters(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Log configuration values, nested ones with dots in their names."""
        self._do("parameters", {key: str(value)[:500] for key, value in _flatten(values, prefix)})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log finite numbers at a step."""
        finite = {key: float(value) for key, value in values.items() if abs(value) < float("inf")}
        self._do("metrics", {"values": finite, "step": step, "milliseconds": int(time.time() * 1000)})

    def image(self, pixels: np.ndarray[Any, Any], key: str, step: int) -> None:
        """Log a picture with values in [0, 1] to the image grid."""
        grey = (255 * pixels.clip(0, 1)).round().astype("uint8")
        coded = {"bytes": b64encode(grey.tobytes()).decode(), "shape": list(grey.shape)}
        self._do("image", {**coded, "key": key, "step": step})

    def table(self, frame: pd.DataFrame, name: str) -> None:
        """Log a table under `name`, a .json file."""
        self._do("table", {"frame": frame.to_json(orient="split"), "name": name})

    def data(self, frame: pd.DataFrame, name: str, context: str) -> None:
        """Log which scans were used, with a digest."""
        self._do("data", {"frame": frame.to_json(orient="split"), "name": name, "context": context})

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._do("file", {"path": str(path.resolve()), "folder": folder})

    def text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self._do("text", {"text": text, "name": name})

    def figure(self, figure: Figure, name: str) -> None:
        """Log a figure under `name`; one that cannot be delivered is in the report."""
        if self.run_id is not None and not self._waiting():
            self._try(lambda client: client.log_figure(self.run_id, figure, name))

    @contextmanager
    def system(self) -> Iterator[None]:
        """Within, log the load and memory of this machine and its GPUs every few seconds, where the server is there."""
        monitor: Any = None

        def start(_client: Any) -> None:
            nonlocal monitor
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(self.run_id, resume_logging=True)
            monitor.start()

        if not self._waiting():
            self._try(start)
        try:
            yield
        finally:
            if monitor is not None:
                monitor.finish()

    def begin(self) -> None:
        """Open the run, and deliver what waits for it.

        Raises:
            ConfigError: the URI is of the file store, which MLflow no longer offers.
        """
        if self.subject is not None:
            self._try(lambda _client: None)
            self._flush()

    def end(self, status: str) -> None:
        """Close the run as `FINISHED` or `FAILED`, now or when it is delivered."""
        if self.subject is None:
            return
        self._do("end", {"status": status})
        self._failed_at = -RETRY_S  # once more, before all is left to another time
        self._flush()
        if self.outbox is not None and (count := len(self.outbox)):
            print(
                f"warning: MLflow: {count} records of '{self.subject.name}' wait in {self.outbox.folder}; "
                "`dualflow deliver` hands them in",
                file=sys.stderr,
            )

    def _do(self, call: str, arguments: dict[str, Any]) -> None:
        if self.subject is None:
            return
        self._flush()
        if not self._waiting() and self._try(lambda client: CALLS[call](client, self.run_id, arguments)):
            return
        if self.outbox is not None:
            try:
                self.outbox.run = {**self.outbox.run, "run_id": self.run_id}
                self.outbox.put(call, arguments)
            except Exception as error:  # such as a full disk, which must not stop the science either
                _warn(error)

    def _waiting(self) -> bool:
        return self.outbox is not None and len(self.outbox) > 0

    def _flush(self) -> None:
        """Deliver what waits, if there is anything and the server may be back."""
        if self.outbox is None or not self._waiting() or time.monotonic() - self._failed_at < RETRY_S:
            return
        waiting = self.outbox

        def deliver(client: Any) -> None:
            for call, arguments in waiting.take():
                CALLS[call](client, self.run_id, arguments)

        if self._try(deliver):
            waiting.forget()

    def _try(self, action: Callable[[Any], None]) -> bool:
        """Whether the action succeeded; the run is opened before it if need be."""
        if self.config is None or self.subject is None or time.monotonic() - self._failed_at < RETRY_S:
            return False
        try:
            if self.run_id is None:
                self.run_id = open_run(self.config, self.subject)
                if self._waiting() and self.outbox is not None:
                    self.outbox.note(run_id=self.run_id)
            from mlflow import MlflowClient

            action(MlflowClient())
        except ConfigError:  # to be told at once, for it would be wrong in every run
            raise
        except Exception as error:  # whatever a store or a server may raise must not stop the science
            self._failed_at = time.monotonic()
            _warn(error)
            return False
        return True


@contextmanager
def tracked(
    config: TrackingConfig, experiment: str, name: str, tags: Mapping[str, str], outbox: Path | None = None
) -> Iterator[Run]:
    """Open a run in `experiment`; close it as finished or failed.

    A run left open under the same name and tags by a process that was killed is taken up again, so that a resumed
    training is one run. What cannot be delivered waits in a folder of `outbox`.

    Raises:
        ConfigError: the URI is of the file store, which MLflow no longer offers.
    """
    folder = None if outbox is None else outbox / re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    run = Run(config, Subject(experiment, name, tags), folder)
    run.begin()
    status: str | None = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except StoppedError:  # it will go on, as the same run
        status = None
        raise
    finally:
        if status is not None:
            run.end(status)


def deliver(config: TrackingConfig, outbox: Path) -> tuple[int, int]:
    """Hand in what waits in the folders of `outbox`; return how many runs were handed in, and how many still wait."""
    done = left = 0
    for folder in sorted(path for path in outbox.glob("*") if path.is_dir()):
        found = Outbox.load(folder)
        if found is None or not len(found):
            continue
        subject = Subject(found.run["experiment"], found.run["name"], found.run["tags"])
        run = Run(config, subject, folder)
        run.begin()
        done, left = (done, left + 1) if run._waiting() else (done + 1, left)
    return done, left


def _log_data(client: Any, run_id: str, frame: str, name: str, context: str) -> None:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    # Without a source, MLflow would take the account name and the path of the script.
    source = CodeDatasetSource(tags={"mlflow.source.name": "dualflow"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on integer columns of a table that is only recorded
        dataset = mlflow.data.from_pandas(_frame(frame), source=source, name=name)
    tag = InputTag("mlflow.data.context", context)
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def _log_image(client: Any, run_id: str, given: Mapping[str, Any]) -> None:
    import numpy as np

    pixels = np.frombuffer(b64decode(given["bytes"]), np.uint8).reshape(given["shape"])
    client.log_image(run_id, pixels, key=given["key"], step=given["step"], synchronous=True)


def _log_metrics(client: Any, run_id: str, values: Mapping[str, float], step: int, milliseconds: int) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, milliseconds, step) for key, value in values.items()])


def _log_parameters(client: Any, run_id: str, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        client.log_param(run_id, key, value)


def _frame(text: str) -> pd.DataFrame:
    from io import StringIO

    import pandas as pd

    return pd.read_json(StringIO(text), orient="split", dtype=False)


CALLS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "parameters": _log_parameters,
    "metrics": lambda client, run_id, given: _log_metrics(client, run_id, **given),
    "image": _log_image,
    "table": lambda client, run_id, given: client.log_table(run_id, _frame(given["frame"]), given["name"]),
    "data": lambda client, run_id, given: _log_data(client, run_id, **given),
    "file": lambda client, run_id, given: client.log_artifact(run_id, given["path"], given["folder"]),
    "text": lambda client, run_id, given: client.log_text(run_id, given["text"], given["name"]),
    "end": lambda client, run_id, given: client.set_terminated(run_id, given["status"]),
}
"""What is asked of a client, by name and with JSON values, so that it can wait in a file."""


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
