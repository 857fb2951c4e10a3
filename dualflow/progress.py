"""Progress of a loop: a live bar on a terminal, lines in a log, and a state file that `dualflow run` reads."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # rich is slow to import, and a log does not need it
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

T = TypeVar("T")
PROGRESS_FOLDER = "DUALFLOW_PROGRESS"
_EVERY_S = 0.5
_LOG_EVERY_S = 20.0


class Progress:
    """Counts `done` of `total` under a label and shows the count at most twice a second; see `progress`."""

    def __init__(self, label: str, total: int, *, visible: bool = True) -> None:
        self.label, self.total, self.done, self.note = label, total, 0, ""
        self._visible = visible
        self._started = self._shown = self._logged = time.monotonic()
        self._folder = os.environ.get(PROGRESS_FOLDER)
        self._live = _live_bar(label, total) if visible and not self._folder and sys.stderr.isatty() else None
        self._show(force=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more items as done; `note` follows the count."""
        self.done += count
        self.note = note or self.note
        self._show(force=0 < self.total <= self.done)

    def close(self) -> None:
        """End the display."""
        self._show(force=not 0 < self.total <= self.done)  # a complete count is shown already
        if self._live is not None:
            self._live[0].stop()

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not self._visible or (not force and now - self._shown < _EVERY_S):
            return
        self._shown = now
        if self._live is not None:
            display, task = self._live
            display.update(task, completed=self.done, note=self.note)
        elif force or now - self._logged > _LOG_EVERY_S:
            self._logged = now
            line = f"{self.label}: {self.done}/{self.total} after {now - self._started:.0f} s {self.note}"
            print(line.rstrip(), file=sys.stderr, flush=True)
        if self._folder:
            # For display only, so it is renamed into place but not flushed to disk.
            file = Path(self._folder) / f"{os.getpid()}.json"
            temp = file.with_suffix(".tmp")
            state = {"label": self.label, "done": self.done, "total": self.total, "note": self.note}
            try:
                descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                with os.fdopen(descriptor, "w") as stream:
                    json.dump(state, stream)
                temp.replace(file)
            except OSError:
                self._folder = None


def live_bars() -> Bars:
    """Bars on standard error; each task has a field `note`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
    )


def _live_bar(label: str, total: int) -> tuple[Bars, TaskID]:
    display = live_bars()
    display.start()
    return display, display.add_task(label, total=total, note="")


@contextmanager
def progress(label: str, total: int, *, visible: bool = True) -> Iterator[Progress]:
    """Show progress while the block runs; `visible` is False in all but one of the processes that share its work."""
    display = Progress(label, total, visible=visible)
    try:
        yield display
    finally:
        display.close()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many are done."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    with progress(label, count) as display:
        for item in items:
            yield item
            display.advance()


def read_states(folder: Path) -> dict[str, tuple[str, int, int, str]]:
    """The newest state of each process that writes to `folder`: process -> (label, done, total, note)."""
    states = {}
    for file in sorted(folder.glob("*.json")):
        try:
            state = json.loads(file.read_text())
            states[f"{file.stem} {state['label']}"] = (state["label"], state["done"], state["total"], state["note"])
        except (OSError, ValueError, KeyError):
            continue  # replaced or removed while it was read
    return states
