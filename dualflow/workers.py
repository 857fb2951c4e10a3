"""Work in worker processes of this machine, by Dask: one that dies costs the task it was at, not the job.

Code that runs natively cannot be trusted to come back: a reader may abort on a damaged file, and the system ends the
process that takes the last memory. So such work is done in worker processes, also where there is only one of them.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, Nanny, as_completed

from dualflow.process import THREAD_VARIABLES, on_sigterm

R = TypeVar("R")

MEMORY_GIB = 4
"""What one worker process may take; a process that takes more is ended."""
_START_S, _LATE_S = 300, 30
_SETTINGS: dict[str, Any] = {
    # A dead worker's tasks come back at once: who is tried again, and when, is decided here.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
    # A worker deep in native code may be silent for long, and a new one takes its time on a busy machine.
    "distributed.scheduler.worker-ttl": None,
    "distributed.deploy.lost-worker-timeout": f"{_START_S} s",
    "distributed.scheduler.no-workers-timeout": f"{_START_S} s",
    # Workers hold no data of Dask's that could be moved to disk, so memory is either fine or too much.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    "distributed.worker.profile.enabled": False,
    # Dask's servers show their state to whoever asks; nobody has to.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
_NATIVE = (
    "as it is where a library fails on a damaged file; look at the file in a viewer and write it again from its DICOM"
)
_CAUSES = {
    signal.SIGKILL: "as the system does when memory runs out; use fewer workers, or more memory",
    signal.SIGTERM: f"as is done when it takes more than {MEMORY_GIB} GiB; check the size of the scan",
}


@dataclass(frozen=True)
class Lost:
    """Outcome of a task at which its worker process died twice.

    Attributes:
        reason: how the process ended and what to do, without the name of the task.
    """

    reason: str


def in_workers(
    function: Callable[..., R], tasks: Sequence[tuple[Any, ...]], workers: int = 1
) -> Iterator[tuple[int, R | Lost]]:
    """Call `function(*task)` for each task in worker processes; yield (place of the task, outcome) as they end.

    A task whose worker died is tried once more after all others and by itself, so that it cannot be blamed for what
    another did. What `function` raises ends everything, with the workers: what is wrong with one task it must return.

    Args:
        function: importable by its name; it and the tasks travel between processes of this program alone.
        tasks: the arguments of each call.
        workers: processes, one thread each.
    """
    if not tasks:
        return
    with on_sigterm(_exit), _cluster(min(workers, len(tasks))) as cluster, Client(cluster) as client:
        died = []
        futures = {client.submit(function, *task, pure=False): place for place, task in enumerate(tasks)}
        for future in as_completed(futures):
            place = futures.pop(future)
            if isinstance(future.exception(), KilledWorker):
                died.append(place)
            else:
                yield place, future.result()
        for place in died:
            client.wait_for_workers(1, timeout=_START_S)
            _Nanny.ends.clear()
            future = client.submit(function, *tasks[place], pure=False)
            error = future.exception()
            yield place, Lost(_reason(error)) if isinstance(error, KilledWorker) else future.result()


@contextmanager
def _cluster(workers: int) -> Iterator[LocalCluster]:
    """New worker processes that end with the block; all that is said to them is encrypted and stays on this machine."""
    with (
        TemporaryDirectory(prefix="dualflow-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(_SETTINGS),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=MEMORY_GIB << 30,
            worker_class=_Nanny,
            env=dict.fromkeys(THREAD_VARIABLES, "1"),
            host="127.0.0.1",
            security=True,
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
            # Any free port, so that two jobs can run side by side.
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        ) as cluster,
    ):
        yield cluster


class _Nanny(Nanny):  # type: ignore[misc]
    """A worker's keeper that remembers how its last process ended."""

    ends: ClassVar[dict[int, int]] = {}
    """Exit code by the worker's name: minus the signal's number, where a signal ended the process."""

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self.ends[self.name] = exitcode
        super()._on_worker_exit_sync(exitcode)


def _reason(error: KilledWorker) -> str:
    """How the worker process of a task ended, and what to do."""
    name, deadline = error.last_worker.name, time.monotonic() + _LATE_S
    # The lost connection is noticed before the process has been waited for.
    while name not in _Nanny.ends and time.monotonic() < deadline:
        time.sleep(0.02)
    code = _Nanny.ends.get(name, 0)
    if code >= 0:
        return f"the process that worked on it ended twice with exit code {code}, {_NATIVE}"
    number = signal.Signals(-code)
    return f"the process that worked on it was ended twice by {number.name}, {_CAUSES.get(number, _NATIVE)}"


def _exit(number: int, _: object) -> None:
    """End this process as an error would, with its workers."""
    raise SystemExit(128 + number)
