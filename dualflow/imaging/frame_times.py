"""Acquisition times of the frames of a PET series, and their overlap with a time window.

BIDS counts `ScanStart`, `InjectionStart` and `FrameTimesStart` in seconds from `TimeZero`, so a frame begins
`FrameTimesStart - InjectionStart` after the injection, independent of `ScanStart`. `FrameDuration` is in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualflow.errors import DataError

# Scanners round the start of a frame, by less than a second.
TOLERANCE_S = 1.0
MAX_SPAN_S = 24 * 3600.0
_MAX_S = 1e9

Window = tuple[float, float]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class FrameTimes:
    """Acquisition times of the frames.

    Attributes:
        start: `[N]` seconds after `origin`.
        duration: `[N]` seconds.
        origin: `injection`, or `TimeZero` if the sidecar lacks the time of injection.
    """

    start: Seconds
    duration: Seconds
    origin: str

    @property
    def span(self) -> Window:
        """Start of the first and end of the last frame."""
        return float(self.start[0]), float(self.start[-1] + self.duration[-1])

    def overlap(self, window: Window | None) -> Seconds:
        """Seconds `[N]` of each frame within `window`; its duration without a window."""
        low, high = window or (-math.inf, math.inf)
        shared: Seconds = np.minimum(self.start + self.duration, high) - np.maximum(self.start, low)
        return np.maximum(shared, 0)


def frame_times(sidecar: Mapping[str, Any], name: str, count: int | None = None) -> FrameTimes:
    """Read the frame times of a BIDS sidecar and check that they are consistent.

    Args:
        sidecar: the sidecar's contents.
        name: the image's name in errors.
        count: expected number of frames; None accepts any.

    Raises:
        DataError: a time is missing or not a number, or two are inconsistent.
    """
    start, duration = (_seconds(sidecar, key, name) for key in ("FrameTimesStart", "FrameDuration"))
    scan, injection = (_offset(sidecar, key, name) for key in ("ScanStart", "InjectionStart"))
    if len(start) != len(duration) or len(start) != (count or len(start)):
        raise DataError(
            f"{name}: FrameTimesStart has {len(start)} and FrameDuration {len(duration)} entries, expected "
            f"{count or 'equally many'}, one per frame; correct the sidecar"
        )
    if duration.min() <= 0:
        raise DataError(
            f"{name}: FrameDuration holds {duration.min():g} s, expected times above 0; correct the sidecar"
        )
    clash = (np.diff(start) <= 0) | (start[:-1] + duration[:-1] - start[1:] > TOLERANCE_S)
    if clash.any():
        frame = int(clash.argmax())
        raise DataError(
            f"{name}: frame {frame} starts at {start[frame]:g} s and lasts {duration[frame]:g} s, but the next "
            f"starts at {start[frame + 1]:g} s, expected one after the other; correct FrameTimesStart or FrameDuration"
        )
    first, last = float(start[0]), float(start[-1] + duration[-1])
    if last - first > MAX_SPAN_S:
        raise DataError(
            f"{name}: its frames take {last - first:g} s, expected less than a day; FrameTimesStart and FrameDuration "
            "are in seconds, not milliseconds"
        )
    if scan is not None and first < scan - TOLERANCE_S:
        raise DataError(
            f"{name}: FrameTimesStart begins at {first:g} s, before ScanStart at {scan:g} s; BIDS counts both from "
            "TimeZero: add ScanStart to each FrameTimesStart, or correct ScanStart"
        )
    if injection is not None and last <= injection:
        raise DataError(
            f"{name}: its frames end at {last:g} s, before InjectionStart at {injection:g} s; BIDS counts both from "
            "TimeZero: correct the sidecar"
        )
    return FrameTimes(start - (injection or 0.0), duration, "TimeZero" if injection is None else "injection")


def _seconds(sidecar: Mapping[str, Any], key: str, name: str) -> Seconds:
    values = sidecar.get(key)
    listed = values if isinstance(values, list) else [values]
    if not listed or not all(_is_number(value) for value in listed):
        stated = "missing" if values in (None, "n/a") else str(values)[:60]
        raise DataError(f"{name}: {key} is {stated}, expected the seconds of each frame; add it to the BIDS sidecar")
    return np.array(listed, dtype=np.float64)


def _offset(sidecar: Mapping[str, Any], key: str, name: str) -> float | None:
    value = sidecar.get(key)
    if value in (None, "n/a"):
        return None
    if not _is_number(value):
        raise DataError(f"{name}: {key} is {str(value)[:60]}, expected seconds from TimeZero; correct the sidecar")
    return float(value)


def _is_number(value: Any) -> bool:
    # The bound also refuses NaN, infinity and integers too long for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_S
