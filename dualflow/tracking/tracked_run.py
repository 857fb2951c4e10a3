"""MLflow runs that tolerate an unreachable server: records that cannot be sent are queued on disk and sent later.

All results are also in the model's folder; MLflow serves to review and compare runs.
"""

from __future__ import annotations

import re
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualflow.commit import commit_bytes
from dualflow.config import TrackingConfig
from dualflow.digests import sha256
from dualflow.errors import ConfigError, StoppedError
from dualflow.temporaries import scratch_folder
from dualflow.tracking.deadline import with_deadline
from dualflow.tracking.mlflow_calls import CALLS, is_permanent_error, logged_points
from dualflow.tracking.mlflow_store import DeletedExperimentError, RunKey, group_key, open_run
from dualflow.tracking.model_registry import reason
from dualflow.tracking.queue import GROUP, RecordQueue, end_now, read_record, reject
from dualflow.tracking.source_version import COMMIT, source_version

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RETRY_S = 60.0
"""Seconds between a failed attempt and the next one."""
FLUSH_S = 30.0
"""Seconds that a training spends at most on queued records before it continues."""
SYNC, RESTORE = "; `dualflow sync` uploads them", " until the experiment is restored"
"""What becomes of queued records: usually, and if the experiment was deleted in MLflow."""


class Run:
    """One MLflow run.

    Each logging method sends its record. If that fails, it warns once, queues the record and returns.

    Args:
        config: URI and artifact folder of the MLflow store.
        key: identifies the run; None for a run that records nothing.
        queue: keeps records that cannot be sent; None to drop them.
    """

    def __init__(
        self, config: TrackingConfig | None = None, key: RunKey | None = None, queue: RecordQueue | None = None
    ) -> None:
        self.config, self.key, self.queue = config, key, queue
        if config is not None and queue is not None:
            queue.run.setdefault(GROUP, config.group)
        # An earlier process may have opened the run; its records come first.
        self.run_id: str | None = None if queue is None else queue.run.get("run_id")
        self._client: Any = None
        self._failed_at, self._fate = -RETRY_S, SYNC
        self._is_finished = False
        # A resumed training repeats the steps after its state, with the same values.
        self._logged = set[tuple[str, int]]()

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log configuration values; the names of nested ones are joined with dots."""
        self._log("parameters", {key: str(value)[:500] for key, value in _flatten(values)})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, which replace those of the same names."""
        self._log("tags", dict(values))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log the finite values at a step."""
        finite = {key: float(value) for key, value in values.items() if abs(value) < float("inf")}
        self._log("metrics", {"values": finite, "step": step, "milliseconds": int(time.time() * 1000)})

    def scores(self, values: Mapping[str, float], prefix: str) -> None:
        """Log the finite results of an evaluation; those of an earlier one that start with `prefix` are replaced."""
        finite = {key: float(value) for key, value in values.items() if abs(value) < float("inf")}
        self._log("scores", {"values": finite, "milliseconds": int(time.time() * 1000), "prefix": prefix})

    def describe(self, markdown: str) -> None:
        """Set the description on the run's page; the placeholder RUN_ID becomes the id of the run."""
        self._log("description", {"markdown": markdown})

    def view(self, value: str) -> None:
        """Set the experiment's view of all models, a value of `models_view`."""
        self._log("view", {"value": value})

    def members(self, names: Sequence[str]) -> None:
        """Name the runs of models below this one that its results hold; others become replaced ones."""
        self._log("members", {"names": list(names)})

    def image(self, pixels: np.ndarray[Any, Any], key: str, step: int) -> None:
        """Log a grey-scale picture `[H, W]` with values in [0, 1] to the image grid."""
        grey = (255 * pixels.clip(0, 1)).round().astype("uint8")
        encoded = {"bytes": b64encode(grey.tobytes()).decode(), "shape": list(grey.shape)}
        self._log("image", {**encoded, "key": key, "step": step, "milliseconds": int(time.time() * 1000)})

    def table(self, frame: pd.DataFrame, name: str) -> None:
        """Log a table as the artifact `name`, a .json file."""
        self._log("table", {"frame": frame.to_json(orient="split"), "name": name})

    def data(self, frame: pd.DataFrame, name: str, context: str, source: str = "dualflow") -> None:
        """Log scans as a dataset: its digest, columns and number of rows, not the rows.

        Args:
            frame: one row per scan.
            name: name of the dataset.
            context: what the run uses it for: training, validation or testing.
            source: where the scans come from, without folders.
        """
        values = {"frame": frame.to_json(orient="split"), "name": name, "context": context, "source": source}
        self._log("data", values)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact. It is read when it is sent, and left out if it has changed by then."""
        try:
            digest = sha256(path)
        except OSError:  # the upload says so
            digest = ""
        self._log("file", {"path": str(path.resolve()), "folder": folder, "digest": digest})

    def text(self, text: str, name: str) -> None:
        """Log a text as the artifact `name`."""
        self._log("text", {"text": text, "name": name})

    def picture(self, png: bytes, name: str) -> None:
        """Log the picture of a figure as the artifact `name`; it is sent only while the server answers."""
        folder, _, file = name.rpartition("/")

        def send(client: Any) -> None:
            with scratch_folder() as scratch:
                commit_bytes(scratch / file, png)
                client.log_artifact(self.run_id, str(scratch / file), folder or None)

        if not self._has_pending():
            self._try(send)

    @contextmanager
    def system(self) -> Iterator[None]:
        """Log load and memory of this machine at intervals within the block, and of GPUs if pynvml is installed."""
        monitor: Any = None

        def start(_client: Any) -> None:
            nonlocal monitor
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = with_deadline(lambda: SystemMetricsMonitor(self.run_id, resume_logging=True))
            monitor.start()

        if not self._has_pending():
            self._try(start)
        try:
            yield
        finally:
            if monitor is not None:
                self._finish(monitor)

    def _finish(self, monitor: Any) -> None:
        try:
            with_deadline(monitor.finish)
        except TimeoutError as error:
            _warn(error)

    def begin(self) -> None:
        """Send the records that an earlier process queued, then open the run.

        Raises:
            ConfigError: the URI cannot be read, or the driver of the database is not installed.
        """
        if self.queue is not None:
            self.queue.reopen()
        self.flush()
        self._try(lambda _client: None)

    def finish(self) -> None:
        """Queue the end of the run as `FINISHED`, to be sent when its block ends.

        Call it before the output that says that the work is done, so that the end is never lost: a process that is
        killed after that output leaves it to the next upload, and one that is killed before continues the run.
        """
        if self.queue is not None and self.key is not None:
            try:
                self.queue.append_end(self.run_id)
                self._is_finished = True
            except Exception as error:  # such as a full disk
                _warn(error)

    def end(self, status: str) -> None:
        """Close the run as `FINISHED` or `FAILED`, or queue that for later."""
        if self.queue is not None and self._is_finished and status != "FINISHED":
            self.queue.reopen()
            self._is_finished = False
        if not self._is_finished:
            self._log("end", end_now(status))
        self._failed_at = -RETRY_S  # one last attempt, even within RETRY_S of a failure
        self.flush()
        if self.queue is not None:
            self.queue.confirm_end()
        if self.queue is not None and self.key is not None and (count := len(self.queue)):
            print(
                f"warning: MLflow: {count} records of '{self.key.name}' are queued in {self.queue.folder}{self._fate}",
                file=sys.stderr,
            )

    def flush(self, seconds: float = float("inf")) -> None:
        """Send queued records for at most about `seconds`, unless an attempt failed within RETRY_S."""
        if self.queue is None or not self._has_pending():
            return
        start = time.monotonic()
        with self.queue.draining() as acquired:
            for file in self.queue.files() if acquired else []:
                try:
                    call, arguments = read_record(file)
                except (OSError, ValueError, KeyError):
                    reject(file)
                    continue
                sent = self._send(call, arguments)
                if sent is None:
                    reject(file)
                elif sent:
                    file.unlink(missing_ok=True)
                if call == "end" and sent is not False:  # later records belong to a run that was started afterwards
                    self.run_id, self._client = None, None
                    self._forget_run()
                if sent is False or time.monotonic() - start > seconds:
                    return

    def _forget_run(self) -> None:
        """Let the queued records after an end start another run, in another process too."""
        if self.queue is not None and self._has_pending():
            try:
                self.queue.set_run_id(None)
            except Exception as error:  # such as a full disk
                _warn(error)

    def _log(self, call: str, arguments: dict[str, Any]) -> None:
        """Send a record after the queued ones, or append it to the queue."""
        if self.key is None:
            return
        # The limit matters in a distributed training, where the other ranks wait with a timeout.
        self.flush(FLUSH_S)
        sent = False if self._has_pending() else self._send(call, arguments)
        if not sent and self.queue is not None:
            try:
                if sent is None:
                    self.queue.keep_rejected(call, arguments)
                else:
                    self.queue.append(call, arguments, self.run_id)
            except Exception as error:  # such as a full disk, which must not stop the training either
                _warn(error)

    def _send(self, call: str, arguments: dict[str, Any]) -> bool | None:
        """Send a record without the points that the run has already; the result is that of `_try`.

        A call that this version does not know is rejected.
        """
        if call not in CALLS:
            return None

        def send(client: Any) -> None:
            CALLS[call](client, self.run_id, self._fresh(arguments) if call == "metrics" else arguments)

        return self._try(send)

    def _fresh(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call `metrics` without the points that the run has already."""
        values, step = arguments["values"], arguments["step"]
        return arguments | {"values": {name: values[name] for name in values if (name, step) not in self._logged}}

    def _has_pending(self) -> bool:
        return self.queue is not None and len(self.queue) > 0

    def _try(self, action: Callable[[Any], None]) -> bool | None:
        """Run `action(client)` on the opened run.

        Returns:
            True on success, False if it may succeed later, None if the server rejects it permanently.
        """
        if self.config is None or self.key is None or time.monotonic() - self._failed_at < RETRY_S:
            return False
        try:
            self._open(self.config, self.key)
            try:
                action(self._client)
            except Exception as error:
                if not is_permanent_error(error):
                    raise
                # The store may have been made anew, without the run.
                self._client = None
                self._open(self.config, self.key)
                action(self._client)
        except ConfigError:  # a wrong setting, which a retry cannot correct
            raise
        except Exception as error:  # no error of a store or a server may stop the training
            if self._client is not None and is_permanent_error(error):
                _warn(error, "the store rejects this record, which is kept as rejected-*.json beside the queue")
                return None
            self._fate = RESTORE if isinstance(error, DeletedExperimentError) else SYNC
            _warn(error, f"records stay queued{self._fate}")
            self._failed_at, self._client = time.monotonic(), None
            return False
        return True

    def _open(self, config: TrackingConfig, key: RunKey) -> None:
        """Open the run unless it is open; its id may be another one than before."""
        if self._client is None:
            self._client, self.run_id = open_run(config, key, self.run_id)
            self._logged = logged_points(self._client, self.run_id)
            if self._has_pending() and self.queue is not None:
                self.queue.set_run_id(self.run_id)


@contextmanager
def tracked(
    config: TrackingConfig,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    pending: Path | None = None,
    *,
    continues: bool = False,
) -> Iterator[Run]:
    """Open a run in `experiment` and close it as finished or failed.

    A run that a killed process left open under the same name and tags is continued, and so is one that failed, so that
    a resumed training is one run.

    Args:
        config: URI and artifact folder of the MLflow store.
        experiment: name of the MLflow experiment.
        name: name of the run.
        tags: distinguish runs of the same name.
        pending: folder of the queues of all runs; None to drop records that cannot be sent.
        continues: whether a finished run of this name and these tags is continued too.

    Raises:
        ConfigError: the URI cannot be read, or the driver of the database is not installed.
    """
    key = RunKey(experiment, name, tags, continues)
    run = Run(config, key, None if pending is None else RecordQueue.open(pending, key))
    run.begin()
    status: str | None = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except StoppedError:  # the run stays open for the process that resumes the training
        status = None
        raise
    finally:
        if status is not None:
            run.end(status)


@contextmanager
def group_run(config: TrackingConfig, experiment: str, pending: Path | None = None) -> Iterator[Run]:
    """Continue the parent run of a study's runs, which holds the results of all of them together.

    Args:
        config: URI, artifact folder and name of the group.
        experiment: name of the MLflow experiment.
        pending: folder of the queues of all runs; None to drop records that cannot be sent.
    """
    key = group_key(config, experiment)
    with tracked(config, experiment, key.name, key.tags, pending, continues=key.continues) as run:
        # The results are those of this code, whichever created the run.
        run.tags({COMMIT: "", **source_version()})
        yield run


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value


_warned: set[str] = set()


def _warn(error: Exception, fate: str = "what could not be sent stays queued for `dualflow sync`") -> None:
    # Object addresses would make every repetition of a failure look new.
    text = re.sub(r" at 0x[0-9a-f]+", "", reason(error))
    if text not in _warned:
        _warned.add(text)
        print(f"warning: MLflow: {text}; {fate}", file=sys.stderr)
