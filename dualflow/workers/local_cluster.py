"""Worker processes on this machine: their number, their limits, and how they ended."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import dask
from dask.system import CPU_COUNT
from distributed import Client, KilledWorker, LocalCluster, Nanny
from distributed.system import MEMORY_LIMIT

from dualflow.process import THREAD_VARIABLES
from dualflow.temporaries import scratch_folder
from dualflow.workers.worker_pool import DEADLINE, START_TIMEOUT_S, WorkerPool

MEMORY_GIB = 4
"""Memory limit of a worker process; a process that exceeds it is terminated."""
SETTINGS: dict[str, Any] = {
    # A crashed worker's tasks fail at once, because `dualflow.workers.tasks` decides about retries.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-saturation": 1.0,
    # A worker in native code may be silent for long, and a new one starts slowly on a busy machine.
    "distributed.scheduler.worker-ttl": None,
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
"""Settings of a scheduler that this process starts, and of its workers."""
_LOCAL = {
    "distributed.deploy.lost-worker-timeout": f"{START_TIMEOUT_S} s",
    "distributed.scheduler.no-workers-timeout": f"{START_TIMEOUT_S} s",
}
_EXIT_CODE_TIMEOUT_S = 30
"""Longest wait for the exit code of a worker; Dask reports none for a process that ends while it starts."""
_GPUS = Path("/proc/driver/nvidia/gpus")
_NATIVE = "probably a library that failed on a damaged file; check the file in a viewer or convert it again from DICOM"
_LATE = f"its preprocessing took longer than {DEADLINE}; look at the scan in a viewer, or raise the deadline"
_CAUSES = {
    signal.SIGKILL: "probably because memory ran out; use fewer workers or more memory",
    signal.SIGTERM: f"probably because it used more than {MEMORY_GIB} GiB; check the size of the scan",
}


def default_workers() -> int:
    """Number of worker processes that this machine has cores and memory for, `MEMORY_GIB` each.

    Cores and memory are those of the process's affinity and control group, such as a container's.
    """
    return max(1, min(int(CPU_COUNT), int(MEMORY_LIMIT) // (MEMORY_GIB << 30)))


@contextmanager
def local_pool(workers: int) -> Iterator[WorkerPool]:
    """Worker processes that end with the block; their connections are encrypted and local to this machine."""
    _Nanny.exit_codes.clear()
    with (
        scratch_folder() as scratch,
        dask.config.set(SETTINGS | _LOCAL),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=MEMORY_GIB << 30,
            worker_class=_Nanny,
            env=dict.fromkeys(THREAD_VARIABLES, "1"),
            host="127.0.0.1",
            security=True,
            local_directory=str(scratch),
            silence_logs=logging.CRITICAL,
            # Any free port: two jobs can run side by side.
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield _LocalPool(client)


@dataclass
class _LocalPool(WorkerPool):
    """Workers whose exit codes are known."""

    def window(self) -> int:
        """Number of tasks in flight: one per worker, so that a task which misses its deadline fails no other.

        A worker tells its results in the background. Native code of a next task could hold them back until it is ended.
        """
        return max(1, len(self.client.nthreads()))

    def prepare_retry(self) -> None:
        self.client.wait_for_workers(1, timeout=START_TIMEOUT_S)
        _Nanny.exit_codes.clear()

    def late_reason(self, error: KilledWorker) -> str | None:
        return _LATE if _take_exit_code(error) == -signal.SIGALRM else None

    def crash_reason(self, error: KilledWorker) -> str:
        code = _take_exit_code(error)
        if code == -signal.SIGALRM:
            return _LATE
        if code >= 0:
            return f"its worker process ended twice with exit code {code}, {_NATIVE}"
        number = signal.Signals(-code)
        return f"its worker process was ended twice by {number.name}, {_CAUSES.get(number, _NATIVE)}"


def _take_exit_code(error: KilledWorker) -> int:
    """Exit code of the worker process that a task ended, taken once; 0 if it is not known."""
    codes, deadline = _Nanny.exit_codes[error.last_worker.name], time.monotonic() + _EXIT_CODE_TIMEOUT_S
    # The lost connection is reported before the exit code.
    while not codes and time.monotonic() < deadline:
        time.sleep(0.02)
    return codes.popleft() if codes else 0


class _Nanny(Nanny):  # type: ignore[misc]
    """A nanny that gives its worker process a GPU and records the exit codes."""

    exit_codes: ClassVar[defaultdict[int, deque[int]]] = defaultdict(deque)
    """Exit codes of a worker's processes in order, by its name; minus the signal's number if a signal ended one."""

    def __init__(self, *arguments: Any, name: int, env: dict[str, str], **options: Any) -> None:
        super().__init__(*arguments, name=name, env=env | gpu_of(name), **options)

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        self.exit_codes[self.name].append(exitcode)
        super()._on_worker_exit_sync(exitcode)


def gpu_of(worker: int) -> dict[str, str]:
    """Environment by which the workers take the machine's GPUs in turn; empty without a GPU."""
    variable = "CUDA_VISIBLE_DEVICES"
    if variable in os.environ:
        gpus = [label for label in os.environ[variable].split(",") if label]
    else:
        gpus = [str(index) for index, _ in enumerate(_GPUS.glob("*"))]
    return {variable: gpus[worker % len(gpus)]} if gpus else {}
