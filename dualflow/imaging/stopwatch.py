"""Seconds by step of a computation on one scan, and their sum."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter


class Stopwatch:
    """Seconds by step: `with clock("template"): ...`; blocks with the same name add up.

    Attributes:
        seconds: seconds by step, in the order of their first use.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a block."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + perf_counter() - begun

    def rounded(self) -> dict[str, float]:
        """Seconds by step to two decimals, as JSON."""
        return {step: round(time, 2) for step, time in self.seconds.items()}


def total_seconds(*paths: Path) -> float:
    """Sum of the seconds in JSON files of `Stopwatch.rounded`; NaN if a file is missing or damaged."""
    try:
        return float(sum(sum(json.loads(path.read_text()).values()) for path in paths))
    except (OSError, ValueError):
        return float("nan")
