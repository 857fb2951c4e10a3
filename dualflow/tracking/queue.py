"""What could not be delivered, as small files that wait for the server to come back.

A folder holds `run.json`, which says what run it is for, and a file for each call, numbered in their order. A file is
removed once it is delivered: killed in between, a call is made twice, which `calls` takes for once. What the server
will not have is set aside as `refused-*`, and the rest goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dualflow.commit import commit_json

RUN = "run.json"


class RecordQueue:
    """The calls of one run that wait, oldest first.

    One training puts calls in; that, or somebody else beside it, hands them in.

    Args:
        folder: of this run alone.
        run: what is to be known of the run, JSON values.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run

    @classmethod
    def load(cls, folder: Path) -> RecordQueue | None:
        """The outbox that another process left; None if there is none, or none that can be read."""
        try:
            run = json.loads((folder / RUN).read_text())
        except (OSError, ValueError):
            return None
        return cls(folder, run) if isinstance(run, dict) else None

    def __len__(self) -> int:
        return len(self.files())

    def files(self) -> list[Path]:
        """The calls that wait, oldest first."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def put(self, call: str, arguments: dict[str, Any], run_id: str | None) -> None:
        """Keep a call for the run, whose id may not be known yet."""
        if not (self.folder / RUN).is_file():
            self.note(run_id)
        files = self.files()
        number = int(files[-1].stem) + 1 if files else 0
        commit_json(self.folder / f"{number:08d}.json", {"call": call, "arguments": arguments})

    def note(self, run_id: str | None) -> None:
        """Write down the run and its id."""
        self.run = {**self.run, "run_id": run_id}
        commit_json(self.folder / RUN, self.run)

    @contextmanager
    def handing_in(self) -> Iterator[bool]:
        """Within, nobody else hands these calls in; False if somebody is at it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
            if not self.files():
                (self.folder / RUN).unlink(missing_ok=True)
                with suppress(OSError):  # something was refused, and stays
                    self.folder.rmdir()
        finally:
            lock.release()


def read_call(file: Path) -> tuple[str, dict[str, Any]]:
    """The call in a file, and its arguments."""
    found = json.loads(file.read_text())
    return found["call"], found["arguments"]


def refuse(file: Path) -> None:
    """Set a call aside that the server will not have."""
    file.rename(file.with_name(f"refused-{file.name}"))
