"""Tasks in local Dask worker processes: a crashed worker fails its task, not the job.

Native code may end its process: a reader aborts on a damaged file, or the system kills a process that takes too much
memory. Such work therefore runs in worker processes, even if there is only one.
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
"""Memory limit of a worker process; a process that exceeds it is terminated."""
_START_TIMEOUT_S, _EXIT_CODE_TIMEOUT_S = 300, 30
_SETTINGS: dict[str, Any] = {
    # A crashed worker's tasks fail at once, because this module decides about retries.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
    # A worker in native code may be silent for long, and a new one starts slowly on a busy machine.
    "distributed.scheduler.worker-ttl": None,
    "distributed.deploy.lost-worker-timeout": f"{_START_TIMEOUT_S} s",
    "distributed.scheduler.no-workers-timeout": f"{_START_TIMEOUT_S} s",
    # Workers hold no Dask data that could be spilled to disk.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    "distributed.worker.profile.enabled": False,
    # Dask's servers would publish their state over HTTP.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
_NATIVE = "probably a library that failed on a damaged file; check the file in a viewer or convert it again from DICOM"
_CAUSES = {
    signal.SIGKILL: "probably because memory ran out; use fewer workers or more memory",
    signal.SIGTERM: f"probably because it used more than {MEMORY_GIB} GiB; check the size of the scan",
}


@dataclass(frozen=True)
class CrashedTask:
    """Outcome of a task whose worker process crashed twice.

    Attributes:
        reason: how the process ended and what to do, without the name of the task.
    """

    reason: str


def run_in_workers(
    function: Callable[..., R], tasks: Sequence[tuple[Any, ...]], workers: int = 1
) -> Iterator[tuple[int, R | CrashedTask]]:
    """Call `function(*task)` for each task in worker processes; yield (index of the task, outcome) as tasks finish.

    A task whose worker crashed is retried once, alone, after all others: another task cannot have caused the second
    crash. An exception in `function` ends all work, so `function` returns the failure of a single task instead.

    Args:
        function: a function that can be imported by its name.
        tasks: the arguments of each call.
        workers: number of processes, one thread each.
    """
    if not tasks:
        return
    with on_sigterm(_exit), _cluster(min(workers, len(tasks))) as cluster, Client(cluster) as client:
        crashed = []
        futures = {client.submit(function, *task, pure=False): index for index, task in enumerate(tasks)}
        for future in as_completed(futures):
            index = futures.pop(future)
            if isinstance(future.exception(), KilledWorker):
                crashed.append(index)
            else:
                yield index, future.result()
        for index in crashed:
            client.wait_for_workers(1, timeout=_START_TIMEOUT_S)
            _Nanny.exit_codes.clear()
            future = client.submit(function, *tasks[index], pure=False)
            error = future.exception()
            yield index, CrashedTask(_reason(error)) if isinstance(error, KilledWorker) else future.result()


@contextmanager
def _cluster(workers: int) -> Iterator[LocalCluster]:
    """Worker processes that end with the block; their connections are encrypted and local to this machine."""
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
            # Any free port: two jobs can run side by side.
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        ) as cluster,
    ):
        yield cluster


class _Nanny(Nanny):  # type: ignore[misc]
    """A nanny that records the exit code of its last worker process."""

    exit_codes: ClassVar[dict[int, int]] = {}
    """Exit code by the worker's name; minus the signal's number if a signal ended the process."""

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self.exit_codes[self.name] = exitcode
        super()._on_worker_exit_sync(exitcode)


def _reason(error: KilledWorker) -> str:
    """How a task's worker process ended, and what to do."""
    name, deadline = error.last_worker.name, time.monotonic() + _EXIT_CODE_TIMEOUT_S
    # The lost connection is reported before the exit code.
    while name not in _Nanny.exit_codes and time.monotonic() < deadline:
        time.sleep(0.02)
    code = _Nanny.exit_codes.get(name, 0)
    if code >= 0:
        return f"its worker process ended twice with exit code {code}, {_NATIVE}"
    number = signal.Signals(-code)
    return f"its worker process was ended twice by {number.name}, {_CAUSES.get(number, _NATIVE)}"


def _exit(number: int, _: object) -> None:
    """End this process and its workers as an error would."""
    raise SystemExit(128 + number)
