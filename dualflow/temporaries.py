"""Temporary files and folders, named after their process and removed once it has ended."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from dualflow.lifetime import HOST, pid_is_alive

TEMP_PREFIX = ".tmp-"
SCRATCH_PREFIX = "dualflow-"
_STALE_S = 24 * 3600.0


def temporary_path(path: Path) -> Path:
    """A path beside `path`, with the same suffixes, whose name tells the process that writes it."""
    return path.with_name(f"{TEMP_PREFIX}{HOST}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def sweep_temporaries(folder: Path | str) -> int:
    """Remove temporary files and folders under `folder` whose process has ended; return how many.

    Processes of another machine cannot be checked, so its files are removed when they are a day old.
    """
    return sum(map(_remove_if_stale, list(Path(folder).rglob(f"{TEMP_PREFIX}*"))))


def sweep_beside(path: Path | str) -> None:
    """Remove the temporaries of the file or folder `path` whose process has ended."""
    path = Path(path)
    for temp in path.parent.glob(f"{TEMP_PREFIX}*-{glob.escape(path.name)}"):
        _remove_if_stale(temp)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, which only its owner may read; it is removed with the block.

    Those of this machine's processes that were killed are removed first.
    """
    parent = Path(gettempdir())
    for folder in parent.glob(f"{SCRATCH_PREFIX}{HOST}-*"):
        pid = folder.name.split("-")[2]
        if pid.isdigit() and not pid_is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{SCRATCH_PREFIX}{HOST}-{os.getpid()}-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


def _remove_if_stale(temp: Path) -> bool:
    host, _, rest = temp.name.removeprefix(TEMP_PREFIX).partition("-")
    pid = rest.partition("-")[0]
    if not pid.isdigit() or (pid_is_alive(int(pid)) if host == HOST else _recent(temp)):
        return False
    if temp.is_dir():
        shutil.rmtree(temp, ignore_errors=True)
    else:
        temp.unlink(missing_ok=True)
    return True


def _recent(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _STALE_S
    except OSError:  # renamed or removed meanwhile
        return True
