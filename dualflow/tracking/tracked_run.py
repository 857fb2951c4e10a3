"""MLflow, and the rule that tracking never stops the science: what cannot be delivered waits, and is delivered later.

The numbers themselves are kept beside the model in any case; MLflow is where runs are looked at and compared.
"""

from __future__ import annotations

import re
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualflow.commit import digest_of
from dualflow.config import TrackingConfig
from dualflow.errors import ConfigError, StoppedError
from dualflow.tracking.mlflow_calls import CALLS, is_refusal
from dualflow.tracking.queue import RecordQueue, read_call, refuse
from dualflow.tracking.store import Subject, load_client, open_run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

RETRY_S = 60.0
"""How long a server that did not answer is left alone."""
FLUSH_S = 30.0
"""How long a training stops to hand in what waits, before it goes on."""


class Run:
    """One MLflow run; every method either delivers, or warns once, keeps what it was given, and lets the caller go on.

    Args:
        config: where runs are recorded.
        subject: which run it is; None for one that is recorded nowhere.
        outbox: folder for what cannot be delivered; None to let it go.
    """

    def __init__(
        self, config: TrackingConfig | None = None, subject: Subject | None = None, outbox: RecordQueue | None = None
    ) -> None:
        self.config, self.subject, self.outbox = config, subject, outbox
        # Of an earlier process, whose records come first.
        self.run_id: str | None = None if outbox is None else outbox.run.get("run_id")
        self._open = False
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
        self._do("image", {**coded, "key": key, "step": step, "milliseconds": int(time.time() * 1000)})

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
        if not self._waiting():
            self._try(lambda client: client.log_figure(self.run_id, figure, name))

    @contextmanager
    def system(self) -> Iterator[None]:
        """Within, log load and memory of this machine every few seconds, of GPUs where there is pynvml."""
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
        """Open the run, after what waits from an earlier process.

        Raises:
            ConfigError: the URI is of the file store, which MLflow no longer offers.
        """
        self.flush()
        self._try(lambda _client: None)

    def end(self, status: str) -> None:
        """Close the run as `FINISHED` or `FAILED`, now or when it is delivered."""
        self._do("end", {"status": status})
        self._failed_at = -RETRY_S  # once more, before all is left to another time
        self.flush()
        if self.outbox is not None and self.subject is not None and (count := len(self.outbox)):
            print(
                f"warning: MLflow: {count} records of '{self.subject.name}' wait in {self.outbox.folder}; "
                "`dualflow deliver` hands them in",
                file=sys.stderr,
            )

    def flush(self, seconds: float = float("inf")) -> None:
        """Hand in what waits, for so long, if the server may be back."""
        if self.outbox is None or not self._waiting():
            return
        begun = time.monotonic()
        with self.outbox.handing_in() as ours:
            for file in self.outbox.files() if ours else []:
                try:
                    call, arguments = read_call(file)
                except (OSError, ValueError, KeyError):
                    refuse(file)
                    continue
                found = self._try(lambda client, c=call, a=arguments: CALLS[c](client, self.run_id, a))  # type: ignore[misc]
                if found is None:
                    refuse(file)
                elif found:
                    file.unlink(missing_ok=True)
                if found is False or time.monotonic() - begun > seconds:
                    return
                if call == "end":  # what follows is of a run that was begun later
                    self.run_id, self._open = None, False

    def _do(self, call: str, arguments: dict[str, Any]) -> None:
        if self.subject is None:
            return
        # Others may wait for this process, and they do not do so for ever.
        self.flush(FLUSH_S)
        if not self._waiting() and self._try(lambda client: CALLS[call](client, self.run_id, arguments)) is not False:
            return
        if self.outbox is not None:
            try:
                self.outbox.put(call, arguments, self.run_id)
            except Exception as error:  # such as a full disk, which must not stop the science either
                _warn(error)

    def _waiting(self) -> bool:
        return self.outbox is not None and len(self.outbox) > 0

    def _try(self, action: Callable[[Any], None]) -> bool | None:
        """Whether the action succeeded, on the opened run; None if the server is there and will not have it."""
        if self.config is None or self.subject is None or time.monotonic() - self._failed_at < RETRY_S:
            return False
        try:
            if not self._open:
                self.run_id, self._open = open_run(self.config, self.subject, self.run_id), True
                if self._waiting() and self.outbox is not None:
                    self.outbox.note(self.run_id)
            action(load_client()())
        except ConfigError:  # to be told at once, for it would be wrong in every run
            raise
        except Exception as error:  # whatever a store or a server may raise must not stop the science
            _warn(error)
            if self._open and is_refusal(error):
                return None
            self._failed_at = time.monotonic()
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
    subject = Subject(experiment, name, tags)
    run = Run(config, subject, None if outbox is None else outbox_of(subject, outbox))
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


def outbox_of(subject: Subject, folder: Path) -> RecordQueue:
    """The outbox of a run among those in `folder`, with what an earlier process left in it."""
    run = {"experiment": subject.experiment, "name": subject.name, "tags": dict(subject.tags)}
    own = folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', subject.name)}-{digest_of(run)[:8]}"
    return RecordQueue.load(own) or RecordQueue(own, run)


def deliver(config: TrackingConfig, outbox: Path) -> tuple[int, int]:
    """Hand in what waits in the folders of `outbox`; return how many runs were handed in, and how many still wait."""
    done = left = 0
    for folder in sorted(path for path in outbox.glob("*") if path.is_dir()):
        found = RecordQueue.load(folder)
        if found is None or not len(found):
            continue
        run = Run(config, Subject(found.run["experiment"], found.run["name"], found.run["tags"]), found)
        run.flush()
        done, left = (done, left + 1) if len(found) else (done + 1, left)
    return done, left


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
