"""What could not be delivered, as small files that wait for the server to come back.

A folder holds `run.json`, which says what run it is for, and a file for each call, numbered in their order. A file is
removed once it is delivered: killed in between, a call is made twice, and MLflow takes the same number at the same step
and time for one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dualflow.commit import commit_json

RUN = "run.json"


class Outbox:
    """The calls of one run that wait, oldest first; the folder is there only while there are any.

    Args:
        folder: of this run alone.
        run: what is to be known of the run, JSON values.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run

    @classmethod
    def load(cls, folder: Path) -> Outbox | None:
        """The outbox that another process left; None if there is none, or none that can be read."""
        try:
            run = json.loads((folder / RUN).read_text())
        except (OSError, ValueError):
            return None
        return cls(folder, run) if isinstance(run, dict) else None

    def __len__(self) -> int:
        return len(self._files())

    def put(self, call: str, arguments: dict[str, Any]) -> None:
        """Keep a call."""
        self.note()
        files = self._files()
        number = int(files[-1].stem) + 1 if files else 0
        commit_json(self.folder / f"{number:08d}.json", {"call": call, "arguments": arguments})

    def note(self, **facts: Any) -> None:
        """Write down what is known of the run, and `facts` with it."""
        if facts or not (self.folder / RUN).is_file():
            self.run = {**self.run, **facts}
            commit_json(self.folder / RUN, self.run)

    def take(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the calls, each removed when the next one is asked for; an error in between leaves it there."""
        for file in self._files():
            found = json.loads(file.read_text())
            yield found["call"], found["arguments"]
            file.unlink()

    def forget(self) -> None:
        """Remove the folder, once all is delivered."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))
