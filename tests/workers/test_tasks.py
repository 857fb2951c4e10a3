"""A crashed worker fails its task, not the job, and no worker outlives the job."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import KilledWorker

from dualflow.process import THREAD_VARIABLES
from dualflow.workers import CrashedTask, call_within, local_cluster, run_in_workers, tasks

pytestmark = pytest.mark.slow


def work(action: str, folder: Path) -> tuple[str, int, set[str | None]]:
    """End the process as `action` says, or return the action, the process id and its thread settings."""
    if action == "abort":
        os.abort()
    if action == "die once" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(7)
    if action == "fill memory":
        filled = [np.ones(1 << 27)]
        threading.Event().wait(len(filled) * 600)
    return action, os.getpid(), {os.environ.get(name) for name in THREAD_VARIABLES}


def hang(folder: Path) -> None:
    """Record the process id, and never return."""
    (folder / str(os.getpid())).touch()
    print(os.getpid(), flush=True)
    threading.Event().wait(600)


def hang_in_native_code(folder: Path, hangs: bool) -> bool:
    """Never give control back to Python, as a reader of a damaged file may do."""
    (folder / str(os.getpid())).touch()
    if hangs:
        # A matching that takes ages, during which no other thread of Python runs.
        re.match(r"(a+)+$", "a" * 60 + "b")
    return hangs


def hang_or_fail(folder: Path, hangs: bool) -> None:
    """Hang, or raise once another task hangs."""
    if hangs:
        hang(folder)
    while not list(folder.iterdir()):
        threading.Event().wait(0.05)
    raise ValueError("stop")


def test_a_crashed_worker_fails_only_its_task(tmp_path, monkeypatch):
    """Each kind of crash has its reason, and a task that crashed once succeeds in the second attempt."""
    monkeypatch.setattr(local_cluster, "MEMORY_GIB", 1)
    actions = ["fine", "abort", "die once", "exit", "kill", "fill memory", "fine too"]
    outcomes = dict(run_in_workers(work, [(action, tmp_path) for action in actions], workers=2))
    assert sorted(outcomes) == list(range(len(actions)))
    results = {action: outcomes[index] for index, action in enumerate(actions)}
    # A process over its memory limit that is slow to end is killed.
    expected = {"abort": "SIGABRT", "kill": "SIGKILL", "fill memory": "SIGTERM|SIGKILL", "exit": "exit code 7"}
    for action, text in expected.items():
        outcome = results.pop(action)
        assert isinstance(outcome, CrashedTask), action
        assert re.search(text, outcome.reason)
        assert "; " in outcome.reason, "the reason says what to do"
        assert "\n" not in outcome.reason
    assert [action for action, _, _ in results.values()] == ["fine", "die once", "fine too"]
    assert all(process != os.getpid() and threads == {"1"} for _, process, threads in results.values())


def test_a_task_that_misses_its_deadline_fails_alone(tmp_path):
    """Also one in native code; it is not repeated, the others succeed, and a deadline ends with its task."""
    calls = [(2.0 if hangs else 60.0, hang_in_native_code, tmp_path, hangs) for hangs in (False, True, False)]
    outcomes = dict(run_in_workers(call_within, [*calls, (60.0, time.sleep, 0.1), (60.0, time.sleep, 1.0)], workers=1))
    late = outcomes.pop(1)
    assert isinstance(late, CrashedTask)
    assert late.reason.startswith("its preprocessing took longer than its deadline (preprocess.deadline_s, ")
    assert outcomes == {0: False, 2: False, 3: None, 4: None}
    assert len(list(tmp_path.iterdir())) == 2, "the worker was replaced once"


def test_a_deadline_ends_with_its_task():
    """The timer is off after the call, also after an error."""
    others = signal.getitimer(signal.ITIMER_REAL)  # that of pytest's own timeout
    try:
        assert call_within(60.0, sum, [1, 2]) == 3
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        with pytest.raises(ZeroDivisionError):
            call_within(60.0, divmod, 1, 0)
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *others)


def test_a_result_that_was_lost_with_its_worker_is_a_crash():
    """The task had finished without an error, and its worker ended before the result was fetched."""
    lost = KilledWorker("call", None, 3)

    class Finished:
        def exception(self):
            return None

        def cancelled(self):
            return False

        def result(self):
            raise lost

    assert tasks._outcome(Finished()) is lost


def test_an_error_ends_all_workers(tmp_path):
    """The exception is raised in the caller, and the worker of another task is terminated."""
    with pytest.raises(ValueError, match="stop"):
        list(run_in_workers(hang_or_fail, [(tmp_path, True), (tmp_path, False)], workers=2))
    [process] = [int(file.name) for file in tmp_path.iterdir()]
    assert not psutil.pid_exists(process)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, -signal.SIGINT), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_workers_end_with_their_master(tmp_path, number, expected):
    """Workers end within seconds if the master is interrupted, terminated or killed, although their task goes on."""
    # A background job of a shell inherits SIGINT as ignored.
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{reset}; import sys, test_tasks as t; list(t.run_in_workers(t.hang, [(t.Path(sys.argv[1]),)]))"
    master = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert int(master.stdout.readline()) != master.pid
    master.send_signal(number)
    # Workers inherit the pipe, so this waits until the last one has ended.
    begun = time.monotonic()
    master.communicate(timeout=600)
    assert time.monotonic() - begun < 100
    assert master.returncode == expected


def add(first: int, second: int) -> int:
    """Return a sum."""
    return first + second


def test_tasks_are_taken_as_workers_become_free():
    """No worker has a second task, whose deadline could end it before it has told the result of the first."""
    taken, ahead = 0, []

    def numbers() -> Iterator[tuple[int, int]]:
        nonlocal taken
        for taken in range(1, 301):
            yield taken, 1

    outcomes = {}
    for index, outcome in run_in_workers(add, numbers(), workers=2):
        outcomes[index] = outcome
        ahead.append(taken - len(outcomes))
    assert outcomes == {index: index + 2 for index in range(300)}
    assert 1 <= max(ahead) <= 2


def test_no_tasks_need_no_workers(monkeypatch):
    """Without tasks, no worker starts."""
    monkeypatch.delattr(tasks, "open_pool")
    assert list(run_in_workers(hang, [])) == []


def test_the_window_may_shrink(monkeypatch):
    """When workers leave, no task is submitted until enough have finished, and none is lost."""
    sizes = iter([8, 8, 8])
    monkeypatch.setattr(local_cluster._LocalPool, "window", lambda _: next(sizes, 1))
    outcomes = dict(run_in_workers(add, ((index, 1) for index in range(20)), workers=1))
    assert outcomes == {index: index + 1 for index in range(20)}
