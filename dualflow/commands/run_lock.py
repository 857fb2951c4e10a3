"""One run at a time in a working folder, and Snakemake's locks of runs that have ended."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dualflow.commit import refused_writes
from dualflow.errors import DataError
from dualflow.lifetime import KERNEL, ProcessMark, end_with_parents, exclusive, is_locked, try_lock
from dualflow.manifest import DigestCache, forget_broken
from dualflow.temporaries import sweep_temporaries

STATE = Path(".snakemake")
"""Snakemake's folder below the working directory."""
LOCK = STATE / "dualflow.lock"
"""Locked by the run that works in this folder; its text is the mark of the run's process, and its kernel."""
INSPECTIONS = {
    "--archive", "--cleanup-metadata", "--cm", "--d3dag", "--dag", "--detailed-summary", "-D", "--filegraph", "--lc",
    "--lint", "--list-changes", "--list-rules", "-l", "--list-target-rules", "--lt", "--report", "--rulegraph",
    "--summary", "-S", "--unlock",
}  # fmt: skip
"""Options by which Snakemake runs no step. It reads the workflow before it looks at them."""
RUN = "DUALFLOW_RUN"
"""Environment variable of the Snakemake of `dualflow run`, and of the rule `compare`: their run holds the lock."""


@contextmanager
def run_lock() -> Iterator[IO[str]]:
    """Hold the lock of the working folder, which children can inherit; wait for a run that holds it.

    Within a run that holds it, the lock is that run's. Snakemake's locks that a dead run left are removed.

    Raises:
        DataError: a run of another machine may still work in this folder.
        CommitError: the file system refused the lock, as on a full disk.
    """
    if RUN in os.environ:
        with LOCK.open() as stream:
            yield stream
        return
    with exclusive(LOCK, "another run is active in this folder; waiting for it to end", inheritable=True) as stream:
        _take_over(stream)
        try:
            yield stream
        finally:
            _sign_off(stream)


def join_run(root: Path, say: Callable[[str], object]) -> bool:
    """Prepare this Snakemake process to run steps; return False if another run is active in the working folder.

    Under `dualflow run`, Snakemake holds its lock and ends with it. Otherwise this process takes the lock until it
    ends, and clears the study of what killed runs left, as `dualflow run` does.

    Args:
        root: folder of the study's results.
        say: receives one line for each removed manifest.
    """
    if RUN in os.environ:
        end_with_parents()
        return True
    if INSPECTIONS & {option.partition("=")[0] for option in sys.argv}:
        return True
    STATE.mkdir(exist_ok=True)
    stream = LOCK.open("a+")
    if not try_lock(stream):
        stream.close()
        return False
    _sign(stream)
    atexit.register(_sign_off, stream)  # which also keeps the file open, and so locked
    clear_study(root, say)
    return True


def clear_study(root: Path, say: Callable[[str], object], digests: DigestCache | None = None) -> None:
    """Remove temporary files of dead processes, and manifests of failed attempts and of changed outputs.

    Their steps run again, unless the study no longer has them, such as those of a removed model.

    Args:
        root: folder of the study's results.
        say: receives one line for each removed manifest.
        digests: cache of the outputs' digests.
    """
    sweep_temporaries(root)
    for step in forget_broken(root / "manifests", digests):
        say(f"{step}: its outputs were changed or removed, or it may succeed now; it runs again if still needed")


def _take_over(stream: IO[str]) -> None:
    """Sign the lock; remove the locks of Snakemake if the run that left them has certainly ended."""
    stream.seek(0)
    mark, _, kernel = stream.read().partition(" ")
    previous = ProcessMark.parse(mark)
    locks = [file for file in (STATE / "locks").glob("*") if file.is_file()]
    if previous is not None and locks:
        # A process of another container cannot be seen. Were it alive, it would hold the lock that is ours now.
        elsewhere_ended = kernel == KERNEL != "" and is_locked(LOCK)
        if not (previous.has_ended() if previous.is_here else elsewhere_ended):
            where = "this machine" if previous.is_here else "another machine"
            raise DataError(
                f"{STATE / 'locks'}: left by a run of process {previous.pid} on {where}, which may be alive; "
                "when it has ended, remove that folder"
            )
        for file in locks:
            file.unlink(missing_ok=True)
        print(f"unlocked: the run of process {previous.pid} has ended without finishing")
    _sign(stream)


def _sign(stream: IO[str]) -> None:
    with refused_writes(LOCK):
        stream.truncate(0)
        # Past the buffer of the stream, which would fail once more when it is closed.
        os.write(stream.fileno(), f"{ProcessMark.current()} {KERNEL}".encode())


def _sign_off(stream: IO[str]) -> None:
    """Remove the mark, unless locks of Snakemake remain that the next run has to judge."""
    if not any((STATE / "locks").glob("*")):
        stream.truncate(0)
