"""What all clusters share: the connection to their workers, and the reason why a task crashed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from distributed import Client, KilledWorker

START_TIMEOUT_S = 300
"""Longest time until a worker process of this machine has started."""
DEADLINE = "its deadline (preprocess.deadline_s, or --deadline of dualflow convert)"
_PER_WORKER, _LEAST = 3, 8
_REFRESH_S = 5.0


@dataclass(frozen=True)
class CrashedTask:
    """Outcome of a task whose worker process crashed in both attempts, or missed its deadline.

    Attributes:
        reason: how the process ended and what to do, without the name of the task.
    """

    reason: str


@dataclass
class WorkerPool:
    """The workers of a cluster, one task at a time each.

    Attributes:
        client: the connection to their scheduler.
    """

    client: Client
    _window: int = field(default=_LEAST, init=False)
    _checked: float = field(default=0.0, init=False)

    def window(self) -> int:
        """Number of tasks in flight: enough that no worker waits, and independent of the number of all tasks.

        Workers may join or leave, so they are counted again every few seconds.
        """
        if (now := time.monotonic()) - self._checked > _REFRESH_S:
            self._checked, self._window = now, max(_LEAST, _PER_WORKER * len(self.client.nthreads()))
        return self._window

    def prepare_retry(self) -> None:
        """Wait until a worker can repeat a crashed task."""
        self.client.wait_for_workers(1)

    def late_reason(self, error: KilledWorker) -> str | None:
        """What to do about a task that missed its deadline (`call_within`); None if its process ended otherwise."""
        return None

    def crash_reason(self, error: KilledWorker) -> str:
        """How the worker process of a task ended, as far as it is known, and what to do."""
        worker = error.last_worker
        return (
            f"its worker processes ended unexpectedly, the last one at {worker.address}, and their exit codes are not "
            "known here, probably because memory ran out, a library failed on a damaged file, or the scan took longer "
            f"than {DEADLINE}; read that worker's log"
        )
