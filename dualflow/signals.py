"""SIGTERM, by which schedulers and users ask a process to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within, SIGTERM calls `handler`; what it did before is put back at the end. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():  # only there Python handles signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
