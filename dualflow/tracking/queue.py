"""Queue on disk of the tracking records of one run, while its MLflow server is unreachable.

The folder of a run holds `run.json`, which identifies the run, and one numbered file per record. A record's file is
removed after its call succeeds. If the process is killed in between, the call is repeated, which has no further effect.
A record that the server rejects is renamed to `rejected-*` and does not block later ones.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dualflow.commit import commit_json
from dualflow.digests import digest_of
from dualflow.tracking.mlflow_store import RunKey

RUN_FILE = "run.json"
IDENTITY = frozenset({"experiment", "name", "tags"})
"""Fields of RUN_FILE that identify the run."""
GROUP = "group"
"""Field of RUN_FILE: name of the parent run."""
CONTINUES = "continues"
"""Field of RUN_FILE: whether records after an end belong to the run that ended."""
PROVISIONAL = "provisional"
"""Argument of an end that was queued before the work was recorded as done."""


class RecordQueue:
    """Pending records of one run, oldest first.

    Only the training process appends records. One process at a time sends them.

    Args:
        folder: folder of this run's records.
        run: identifies the run: experiment, name, tags and, once known, run_id.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run

    @classmethod
    def open(cls, pending: Path, key: RunKey) -> RecordQueue:
        """Return the queue of a run in the folder `pending`, with the records that an earlier process left."""
        run = {"experiment": key.experiment, "name": key.name, "tags": dict(key.tags)}
        folder = pending / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', key.name)}-{digest_of(run)[:8]}"
        queue = cls.load(folder) or cls(folder, run)
        if key.continues and not queue.run.get(CONTINUES):
            queue.run = {**queue.run, CONTINUES: True}
            if (folder / RUN_FILE).is_file():
                commit_json(folder / RUN_FILE, queue.run)
        return queue

    @classmethod
    def load(cls, folder: Path) -> RecordQueue | None:
        """Return the queue that another process left in `folder`; None if there is none or it is unreadable."""
        try:
            run = _read_object(folder / RUN_FILE)
        except (OSError, ValueError):
            return None
        return cls(folder, run) if run.keys() >= IDENTITY else None

    def __len__(self) -> int:
        return unsent_records(self.folder)

    def files(self) -> list[Path]:
        """Files of the pending records, oldest first."""
        return _record_files(self.folder)

    def append(self, call: str, arguments: dict[str, Any], run_id: str | None) -> None:
        """Store a record of the run, whose id may still be unknown."""
        self._keep_identity(run_id)
        files = self.files()
        number = int(files[-1].stem) + 1 if files else 0
        commit_json(self.folder / f"{number:08d}.json", {"call": call, "arguments": arguments})
        self._keep_identity(run_id)  # a process that found the queue empty just before may have removed it

    def keep_rejected(self, call: str, arguments: dict[str, Any]) -> None:
        """Store a record that the server rejects beside the queue, not in it."""
        commit_json(_rejected(self.folder / "0.json"), {"call": call, "arguments": arguments})

    def set_run_id(self, run_id: str | None) -> None:
        """Store the MLflow id of the run beside its records."""
        self.run = {**self.run, "run_id": run_id}
        commit_json(self.folder / RUN_FILE, self.run)

    def _keep_identity(self, run_id: str | None) -> None:
        if not (self.folder / RUN_FILE).is_file():
            self.set_run_id(run_id)

    def append_end(self, run_id: str | None) -> None:
        """Store the end of the run before the work is recorded as done; `confirm_end` or `reopen` follows."""
        self.append("end", {**end_now("FINISHED"), PROVISIONAL: True}, run_id)

    def confirm_end(self) -> None:
        """The work is recorded as done: a later repetition is another run."""
        if (file := self._provisional_end()) is not None:
            commit_json(file, {"call": "end", "arguments": end_now("FINISHED")})

    def reopen(self) -> None:
        """Drop the provisional end: the work was not recorded as done, so it goes on in the same run."""
        if (file := self._provisional_end()) is not None:
            file.unlink()

    def _provisional_end(self) -> Path | None:
        with suppress(OSError, ValueError, KeyError, IndexError):
            last = self.files()[-1]
            call, arguments = read_record(last)
            return last if call == "end" and PROVISIONAL in arguments else None
        return None

    @contextmanager
    def draining(self) -> Iterator[bool]:
        """Lock the queue to send its records; yield False if another process holds the lock.

        An empty queue is removed at the end.
        """
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
                (self.folder / RUN_FILE).unlink(missing_ok=True)
                if self.files():  # appended meanwhile
                    commit_json(self.folder / RUN_FILE, self.run)
                with suppress(OSError):  # rejected records stay
                    self.folder.rmdir()
        finally:
            lock.release()


def end_now(status: str) -> dict[str, Any]:
    """Arguments of the end of a run at this time."""
    return {"status": status, "milliseconds": int(time.time() * 1000)}


def unsent_records(folder: Path) -> int:
    """Number of the pending records in the folder of a run."""
    return len(_record_files(folder))


def read_record(file: Path) -> tuple[str, dict[str, Any]]:
    """Read a record: the name of its call, and the arguments.

    Raises:
        OSError, ValueError, KeyError: the file is not a record.
    """
    record = _read_object(file)
    call, arguments = record["call"], record["arguments"]
    if not (isinstance(call, str) and isinstance(arguments, dict)):
        raise ValueError(f"{file}: expected the name of a call and its arguments")
    return call, arguments


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file}: is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


def reject(file: Path) -> None:
    """Take a record out of its queue and keep it as `rejected-*`, beside others of its number."""
    file.rename(_rejected(file))


def _rejected(file: Path) -> Path:
    names = (file.with_name(f"rejected-{file.stem}{end}.json") for end in chain([""], (f"-{n}" for n in count(2))))
    return next(name for name in names if not name.exists())


def _record_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))
