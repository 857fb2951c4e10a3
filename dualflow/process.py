"""The running process: CPU threads, SIGTERM, torchrun, and the C library's handling of freed memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
"""Environment variables that limit the threads of each numerical library; by default each takes every core."""
# Constants of glibc's malloc.h, and the largest int.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _INT_MAX = -1, -4, 2**31 - 1


def set_threads(count: int) -> None:
    """Limit every numerical library to `count` CPU threads."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(count)
    if torch := sys.modules.get("torch"):  # libraries imported later read the environment
        torch.set_num_threads(count)


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


@contextmanager
def on_sigterm(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call `handler` on SIGTERM inside the block, and restore the previous handler afterwards.

    Python delivers signals to the main thread alone; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def interrupt(*_: object) -> None:
    """Handle a signal as Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def without_main_script() -> Iterator[None]:
    """Keep new processes from running the main script, which would start the work again in each of them.

    `multiprocessing` runs it so that functions of the script can be called; dualflow calls its own modules only.
    """
    attributes = vars(sys.modules["__main__"])
    saved: dict[str, Any] = {name: attributes[name] for name in ("__file__", "__spec__") if name in attributes}
    try:
        attributes.pop("__file__", None)
        attributes["__spec__"] = None
        yield
    finally:
        attributes.update(saved)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor; on other C libraries nothing changes.

    By default glibc returns large blocks to the system at once, and the next allocation clears fresh pages: 5 % of a
    training step at 4 mm on a CPU, a third of one at 2 mm.
    """
    with suppress(OSError, AttributeError):
        library = CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _INT_MAX)
        library.mallopt(_M_MMAP_MAX, 0)
