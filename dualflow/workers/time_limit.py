"""A deadline for one task in a worker process, which also ends native code that never returns."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


def call_within(seconds: float, function: Callable[..., R], *arguments: Any) -> R:
    """Call a function; if it takes longer, the system ends this process by SIGALRM.

    A timer of the system is needed because a reader in native code may never give control back to Python. Call this in
    worker processes only.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
