"""A crashed worker fails its task alone, and no worker outlives the job."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from dualflow import workers
from dualflow.process import THREAD_VARIABLES
from dualflow.workers import CrashedTask, run_in_workers

pytestmark = pytest.mark.slow


def work(how: str, folder: Path) -> tuple[str, int, set[str | None]]:
    """End the process in some way, or return `how`, the process and its numbers of threads."""
    if how == "abort":
        os.abort()
    if how == "die once" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    if how == "fill memory":
        filled = [np.ones(1 << 27)]
        threading.Event().wait(len(filled) * 600)
    return how, os.getpid(), {os.environ.get(name) for name in THREAD_VARIABLES}


def hang(folder: Path) -> None:
    """Write down which process this is, and work without end."""
    (folder / str(os.getpid())).touch()
    print(os.getpid(), flush=True)
    threading.Event().wait(600)


def hang_or_fail(folder: Path, hangs: bool) -> None:
    """Hang or, once another does, raise."""
    if hangs:
        hang(folder)
    while not list(folder.iterdir()):
        threading.Event().wait(0.05)
    raise ValueError("stop")


def test_a_crashed_worker_fails_its_task_alone(tmp_path, monkeypatch):
    """Each kind of crash has its reason, a task that crashed once succeeds on retry, and all others succeed."""
    monkeypatch.setattr(workers, "MEMORY_GIB", 1)
    tasks = ["fine", "abort", "die once", "exit", "kill", "fill memory", "fine too"]
    outcomes = dict(run_in_workers(work, [(how, tmp_path) for how in tasks], workers=2))
    assert sorted(outcomes) == list(range(len(tasks)))
    named = {how: outcomes[place] for place, how in enumerate(tasks)}
    expected = {"abort": "SIGABRT", "kill": "SIGKILL", "fill memory": "SIGTERM", "exit": "exit code 7"}
    for how, text in expected.items():
        outcome = named.pop(how)
        assert isinstance(outcome, CrashedTask), how
        assert text in outcome.reason
        assert "; " in outcome.reason, "what to do"
        assert "\n" not in outcome.reason
    assert [how for how, _, _ in named.values()] == ["fine", "die once", "fine too"]
    assert all(process != os.getpid() and threads == {"1"} for _, process, threads in named.values())


def test_an_error_ends_all_work(tmp_path):
    """An exception in a task is raised here, and the worker of another task is ended."""
    with pytest.raises(ValueError, match="stop"):
        list(run_in_workers(hang_or_fail, [(tmp_path, True), (tmp_path, False)], workers=2))
    [process] = [int(file.name) for file in tmp_path.iterdir()]
    assert not psutil.pid_exists(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_master(tmp_path, number):
    """No worker outlives its master, whether that is terminated or killed."""
    code = "import sys, test_workers as t; list(t.run_in_workers(t.hang, [(t.Path(sys.argv[1]),)]))"
    master = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert int(master.stdout.readline()) != master.pid
    master.send_signal(number)
    # Its end of the pipe is the workers' too: this waits for the last of them.
    master.communicate(timeout=120)
    assert master.returncode == (-number if number == signal.SIGKILL else 128 + number)


def test_no_tasks_need_no_workers(monkeypatch):
    """Without tasks, no worker starts."""
    monkeypatch.delattr(workers, "_cluster")
    assert list(run_in_workers(hang, [])) == []
