"""Marks of processes, locks that end with their holder, and steps that end with the run that started them."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from dualflow import lifetime
from dualflow.lifetime import (
    HOST,
    PARENTS,
    ProcessMark,
    exclusive,
    is_locked,
    kill_tree,
    parents_of_steps,
    pid_is_alive,
    try_lock,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def mark_of(process):
    return ProcessMark(HOST, process.pid, lifetime._started(process.pid))


def ends_within(seconds, process):
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process.poll() is not None


@pytest.fixture
def child():
    """A sleeping child process, killed and reaped at the end."""
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_a_mark_survives_as_text():
    """The text of this process's mark is the mark of a living process of this machine."""
    mark = ProcessMark.parse(f"{ProcessMark.current()}\n")
    assert mark == ProcessMark.current()
    assert mark.is_here
    assert not mark.has_ended()


@pytest.mark.parametrize("text", ["", "host", "host:1", "host:pid:1", "host:1:never"])
def test_other_text_is_no_mark(text):
    """A damaged or empty lock file names no process."""
    assert ProcessMark.parse(text) is None


def test_killed_reused_and_zombie_processes_have_ended(child):
    """A process id alone proves nothing: the start time tells a reused one."""
    mark = mark_of(child)
    assert not mark.has_ended()
    assert mark._replace(started=mark.started - 1).has_ended()
    assert pid_is_alive(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert mark.has_ended()
    assert not pid_is_alive(child.pid)
    child.wait()
    assert mark.has_ended()


def test_a_mark_of_another_machine_is_not_here():
    """Its process id means nothing on this machine."""
    assert not ProcessMark("other", os.getpid(), 0).is_here


WATCHED = """
import signal, sys, time
from dualflow.lifetime import end_with_parents
if sys.argv[1] == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_parents(grace_s=0.2)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("behaviour", "expected"), [("ends", signal.SIGTERM), ("ignores", signal.SIGKILL)])
def test_a_step_ends_with_its_parent(child, monkeypatch, behaviour, expected):
    """By SIGTERM soon after a named parent was killed, and by SIGKILL if it goes on."""
    other = ProcessMark("other", 1, 0)
    monkeypatch.setenv(PARENTS, f"{ProcessMark.current()},{other},{mark_of(child)}")
    command = [sys.executable, "-c", WATCHED, behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as step:
        assert step.stdout.readline() == b"ready\n"
        assert not ends_within(0.5, step)
        child.kill()
        child.wait()
        assert ends_within(10, step)
        assert step.returncode == -expected


def test_children_get_the_marks_of_all_ancestors(monkeypatch):
    """A step ends with Snakemake and with the run that started Snakemake."""
    monkeypatch.setenv(PARENTS, "host:1:2")
    assert parents_of_steps() == f"host:1:2,{ProcessMark.current()}"
    monkeypatch.delenv(PARENTS)
    assert parents_of_steps() == str(ProcessMark.current())


HOLDER = """
import sys, time
from pathlib import Path
from dualflow.lifetime import exclusive
with exclusive(Path(sys.argv[1]), "the lock is taken"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    """A second process waits, says so, and goes on when the first is killed."""
    path = tmp_path / "locks" / "step.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"locked\n"
        with path.open() as stream:
            assert not try_lock(stream)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as second:
            assert second.stderr.readline() == b"the lock is taken\n"
            first.kill()
            assert second.stdout.readline() == b"locked\n"
            second.kill()


def test_only_an_inheritable_lock_passes_to_children(tmp_path):
    """`dualflow run` passes its lock to Snakemake; a step passes its lock to no one."""
    with exclusive(tmp_path / "run.lock", "", inheritable=True) as run, exclusive(tmp_path / "step.lock", "") as step:
        assert os.get_inheritable(run.fileno())
        assert not os.get_inheritable(step.fileno())


def test_a_held_lock_is_seen(tmp_path):
    """Also one that this process holds."""
    with exclusive(tmp_path / "x.lock", ""):
        assert is_locked(tmp_path / "x.lock")
    assert not is_locked(tmp_path / "x.lock")


def test_ended_processes_are_not_killed_again(child):
    """The others of the list are killed."""
    import psutil

    gone = subprocess.Popen([sys.executable, "-c", ""])
    processes = [psutil.Process(gone.pid), psutil.Process(child.pid)]
    gone.wait()
    kill_tree(processes)
    assert child.wait() == -signal.SIGKILL


def test_a_change_of_the_clock_ends_no_process(monkeypatch):
    """The time at which the machine started seems to move when its clock is set."""
    import psutil

    mark = ProcessMark.current()
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not mark.has_ended()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    """The work goes on; any other error is raised."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path / "x.lock", "waiting"):
        assert not is_locked(tmp_path / "x.lock")
    assert "has no locks (Function not implemented); start one run at a time" in capsys.readouterr().err
