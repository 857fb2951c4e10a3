"""Progress of a running workflow: live bars on a terminal, one line per finished step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from dualflow.commands.snakemake_log import LogFollower
from dualflow.progress import live_bars

HEARTBEAT_S = 60.0
States = dict[str, tuple[str, int, int, str]]
"""Process -> (label, done, total, note), as `read_states` returns it."""


class Display(Protocol):
    """Shows the progress of a workflow."""

    def show(self, log: LogFollower, states: States) -> None:
        """Show the finished steps, and how far the running ones are."""

    def close(self) -> None:
        """End the display."""


class BarDisplay:
    """Live bars: one of all steps, and one per running step that reports its progress."""

    def __init__(self) -> None:
        self._bars = live_bars()
        self._bars.start()
        self._overall = self._bars.add_task("[bold]all steps", total=None, note="")
        self._tasks: dict[str, Any] = {}
        self._printed = 0

    def show(self, log: LogFollower, states: States) -> None:
        """Show the finished steps, and how far the running ones are."""
        self._bars.update(self._overall, completed=len(log.finished), total=log.total or None)
        for line in _finished_lines(log, self._printed):
            self._bars.console.print(line, markup=False, highlight=False)
        self._printed = len(log.finished)
        for key, (label, done, total, note) in states.items():
            if total and key not in self._tasks:
                self._tasks[key] = self._bars.add_task(label, total=total, note="")
            if key in self._tasks:
                self._bars.update(self._tasks[key], completed=done, note=note, visible=done < total)

    def close(self) -> None:
        """End the display."""
        self._bars.stop()


class LineDisplay:
    """One line per finished step, and a line a minute while none finishes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._printed = clock, clock(), 0
        self._last_line = self._start

    def show(self, log: LogFollower, states: States) -> None:
        """Print the steps that finished since the last call, or a heartbeat."""
        for line in _finished_lines(log, self._printed):
            self._print(line)
        self._printed = len(log.finished)
        if self._clock() - self._last_line >= HEARTBEAT_S:
            minutes = (self._clock() - self._start) / 60
            running = [f"{label} {done}/{total}" for label, done, total, _ in states.values() if done < total]
            running = running or [job.label for job, _ in log.running.values()]
            self._print(
                f"{len(log.finished)} of {log.total} steps done after {minutes:.0f} min; running: {', '.join(running)}"
            )

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self._last_line = self._clock()

    def close(self) -> None:
        """End the display."""


def _finished_lines(log: LogFollower, printed: int) -> list[str]:
    return [
        f"[{number}/{log.total}] {label}: {seconds:.0f} s"
        for number, (label, seconds) in enumerate(log.finished[printed:], printed + 1)
    ]
