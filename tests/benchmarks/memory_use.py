"""Memory of this process: its peak, and the return of freed memory before a measurement."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path

import psutil


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes; on Linux since the last `reset_peak`."""
    with suppress(OSError):  # Linux only
        lines = Path("/proc/self/status").read_text().splitlines()
        if high_water_mark := [line.split()[1] for line in lines if line.startswith("VmHWM")]:
            return int(high_water_mark[0]) << 10
    # Includes the parent's memory at the fork.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1 << 10)


def release_freed_memory() -> None:
    """Return freed memory to the system, so that the memory in use can be measured; on Linux only."""
    with suppress(OSError, AttributeError):
        CDLL(None).malloc_trim(0)


def reset_peak() -> float:
    """Return freed memory to the system, reset the peak, and return the bytes in use."""
    release_freed_memory()
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")
    return float(psutil.Process().memory_info().rss)
