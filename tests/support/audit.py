"""Watch what a block does: the files it changes, and the code that it unpickles, evaluates or starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Audit event -> position of the path that it changes.
CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.chmod": 0,
           "os.truncate": 0, "shutil.move": 1, "shutil.rmtree": 0}  # fmt: skip
CODE = {"pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
        "ctypes.dlopen", "socket.connect", "socket.bind"}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watched: list[tuple[Path, list[str]]] = []
_installed: list[bool] = []


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Yield a list that receives every change outside `folder`, and every code that runs from data."""
    if not _installed:  # a hook stays until the process ends
        sys.addaudithook(_hook)
        _installed.append(True)
    events: list[str] = []
    _watched.append((folder.resolve(), events))
    try:
        yield events
    finally:
        _watched.pop()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    folder, events = _watched[-1]
    if event == "open":
        path, _, flags = arguments
        if not flags & WRITING or not isinstance(path, str | bytes):
            return
    elif event in CHANGES:
        path = arguments[CHANGES[event]]
    elif event in CODE or (event == "compile" and arguments[1] in ("<string>", "<stdin>")):
        events.append(f"{event} {arguments!r:.200}")
        return
    else:
        return
    if not isinstance(path, int) and not Path(os.fsdecode(path)).resolve().is_relative_to(folder):
        events.append(f"{event} {os.fsdecode(path)}")
