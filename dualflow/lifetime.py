"""How long processes live: their identity across machines, locks that end with them, and children that do."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

import psutil

from dualflow.errors import CommitError


def _host() -> str:
    """Digest of what process ids are specific to: the machine, and in a container its namespace."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _kernel() -> str:
    """Identity of the running kernel, which containers share; empty where it has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


HOST = _host()
"""Digest of this machine and process namespace."""
KERNEL = _kernel()
"""Identity of this machine since it started, also in its containers; empty where it is unknown."""
PARENTS = "DUALFLOW_PARENTS"
"""Environment variable: marks of the processes that a step ends with."""
GRACE_S = 60.0
"""Seconds between SIGTERM and SIGKILL."""
_POLL_S = 0.2
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class ProcessMark(NamedTuple):
    """Identity of a process; its start time distinguishes it from a later process of the same id.

    Attributes:
        host: digest of its machine's name.
        pid: process id.
        started: clock ticks since the machine started, which a change of the clock does not move.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """The mark of this process."""
        return cls(HOST, os.getpid(), _started(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The mark whose `str` is `text`; None if the text is not a mark."""
        host, _, rest = text.strip().partition(":")
        pid, _, started = rest.partition(":")
        try:
            return cls(host, int(pid), int(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether the process belongs to this machine, so that `has_ended` can tell."""
        return self.host == HOST

    def has_ended(self) -> bool:
        """Whether the process of this machine has ended."""
        try:
            return self.started != _started(self.pid) or not pid_is_alive(self.pid)
        except (OSError, psutil.NoSuchProcess):
            return True


def pid_is_alive(pid: int) -> bool:
    """Whether a process of this machine has the id `pid`."""
    try:
        # In a container, no init process may reap the children of a killed parent.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; without /proc, in seconds since the epoch."""
    if not Path("/proc/self/stat").is_file():
        return int(psutil.Process(pid).create_time())
    # The name of the program, in parentheses, may hold spaces; the start is the 20th field after it.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def parents_of_steps() -> str:
    """The value of PARENTS for the children of this process: it, and the processes that it ends with."""
    return ",".join(filter(None, [os.environ.get(PARENTS, ""), str(ProcessMark.current())]))


def end_with_parents(grace_s: float = GRACE_S) -> None:
    """End this process when a process that PARENTS names has ended: by SIGTERM, after `grace_s` by SIGKILL.

    SIGKILL also ends its descendants. Processes of another machine are not watched.
    """
    marks = [mark for text in os.environ.get(PARENTS, "").split(",") if (mark := ProcessMark.parse(text))]
    local = [mark for mark in marks if mark.is_here]
    if local:
        threading.Thread(target=_end_with, args=(local, grace_s), daemon=True).start()


def _end_with(parents: Iterable[ProcessMark], grace_s: float) -> None:
    while not any(mark.has_ended() for mark in parents):
        time.sleep(_POLL_S)
    with suppress(OSError, ValueError):
        print("the run that started this step has ended; the step ends too", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    kill_tree(psutil.Process().children(recursive=True))
    os.kill(os.getpid(), signal.SIGKILL)


def kill_tree(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; those that have ended are ignored."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def exclusive(path: Path, waiting: str, *, inheritable: bool = False) -> Iterator[IO[str]]:
    """Hold the lock file `path` until the block or this process ends; wait for another process that holds it.

    Args:
        path: created if it is missing; its text belongs to the holder.
        waiting: printed on standard error before it waits.
        inheritable: whether children that are given the descriptor hold the lock too.

    Raises:
        CommitError: the file system refused the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise CommitError(f"{path}: cannot be written ({error.strerror}); change the output folder") from error
    with file as stream:
        if not try_lock(stream):
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        os.set_inheritable(stream.fileno(), inheritable)
        yield stream


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file, maybe this one; False on a file system without locks."""
    with path.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return False


def try_lock(stream: IO[str]) -> bool:
    """Lock an open file unless another process holds its lock; return whether the caller may go on.

    On a file system without locks, it warns and goes on.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {stream.name}: this file system has no locks ({error.strerror}); start one run at a time",
            file=sys.stderr,
        )
    return True
