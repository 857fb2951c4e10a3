"""Calls of a function in worker processes, a few in flight at a time; crashed tasks are repeated alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any, TypeVar

from distributed import CancelledError, Future, KilledWorker, as_completed

from dualflow.errors import ClusterError
from dualflow.process import interrupt, keep_freed_memory, on_sigterm, set_threads
from dualflow.workers.cluster_choice import LOCAL, open_pool
from dualflow.workers.local_cluster import default_workers
from dualflow.workers.worker_pool import CrashedTask, WorkerPool

R = TypeVar("R")
_PROCESS = threading.Lock()


def run_in_workers(
    function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], workers: int | None = None, cluster: str = LOCAL
) -> Iterator[tuple[int, R | CrashedTask]]:
    """Call `function(*task)` for each task in worker processes; yield (index of the task, outcome) as tasks finish.

    Tasks are taken from `tasks` as workers become free, so memory does not depend on their number. A task whose worker
    crashed is repeated once, alone, after all others: another task cannot have caused the second crash. One that missed
    the deadline of `call_within` is not repeated. An exception in `function` ends all work, so `function` returns the
    failure of a single task instead. SIGTERM acts like Ctrl-C.

    Args:
        function: a function that can be imported by its name.
        tasks: the arguments of each call.
        workers: number of processes on this machine; None takes `default_workers()`.
        cluster: where the workers run, as in `check_cluster`.

    Raises:
        ClusterError: the cluster cannot be joined, or its scheduler ended.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.
    """
    remaining, count = iter(tasks), workers or default_workers()
    first = list(islice(remaining, count))
    if not first:
        return
    with on_sigterm(interrupt), open_pool(cluster, min(count, len(first))) as pool:
        yield from _run(pool, function, chain(first, remaining))


def _run(
    pool: WorkerPool, function: Callable[..., R], tasks: Iterator[tuple[Any, ...]]
) -> Iterator[tuple[int, R | CrashedTask]]:
    numbered, crashed = enumerate(tasks), list[tuple[int, tuple[Any, ...]]]()
    in_flight: dict[Future, tuple[int, tuple[Any, ...]]] = {}
    finished = as_completed(loop=pool.client.loop)

    def submit() -> None:
        free = max(0, pool.window() - len(in_flight))  # the window shrinks when workers leave
        for index, task in islice(numbered, free):
            future = _submit(pool, function, task)
            in_flight[future] = index, task
            finished.add(future)

    submit()
    for future in finished:
        index, task = in_flight.pop(future)
        submit()
        outcome = _outcome(future)
        if not isinstance(outcome, KilledWorker):
            yield index, outcome
        elif reason := pool.late_reason(outcome):
            yield index, CrashedTask(reason)
        else:
            crashed.append((index, task))
    for index, task in crashed:
        pool.prepare_retry()
        outcome = _outcome(_submit(pool, function, task))
        yield index, CrashedTask(pool.crash_reason(outcome)) if isinstance(outcome, KilledWorker) else outcome


def _submit(pool: WorkerPool, function: Callable[..., Any], task: tuple[Any, ...]) -> Future:
    return pool.client.submit(_call, function, task, pure=False)


def _call(function: Callable[..., R], task: tuple[Any, ...]) -> R:
    """Call `function(*task)` on one core, one call at a time per process, however the worker was started."""
    with _PROCESS:
        set_threads(1)
        keep_freed_memory()  # clearing fresh pages takes a fifth of a scan's CPU time
        return function(*task)


def _outcome(future: Future) -> Any:
    """Wait for a task; return its result, or the KilledWorker of a task whose worker crashed.

    A worker may crash by its next task after one has finished and before the result is fetched. The scheduler then
    repeats the finished task, perhaps on workers that crash again.

    Raises:
        ClusterError: the scheduler ended.
    """
    with suppress(CancelledError, asyncio.CancelledError):
        try:
            return future.result()
        except KilledWorker as error:
            return error
    raise ClusterError(
        "the connection to the scheduler was lost, expected one until all tasks are finished; start the scheduler "
        "again and repeat the command, which skips finished tasks"
    )
