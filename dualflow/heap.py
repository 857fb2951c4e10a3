"""What the C library does with memory that is freed."""

from __future__ import annotations

from contextlib import suppress
from ctypes import CDLL

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 256 << 20


def keep_freed_memory() -> None:
    """Keep what is freed for the next tensor, where the C library is glibc; elsewhere nothing changes.

    By itself glibc gives large blocks back to the system at once, which hands the next one out page by page, each
    cleared: some 5 % of a training step on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


def give_back_free_memory() -> None:
    """Hand free memory back to the system, so that what is held can be measured."""
    with suppress(OSError, AttributeError):
        CDLL(None).malloc_trim(0)
