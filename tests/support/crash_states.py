"""Crash states of file operations: recorded from real code, replayed in every order that a disk may keep them in.

A disk keeps what was flushed. Of the rest it keeps any part, in any order: entries of a folder that was not flushed;
the data of a file that was not flushed: none, half, zeros or all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

MAX_PENDING = 8
"""Unflushed folder entries of which every subset is tried; earlier ones are kept."""
ROOT = 0


@dataclass(frozen=True)
class Operation:
    """One operation on the file system; files and folders are numbered, so that a renamed one stays itself.

    Attributes:
        kind: link, unlink, rename, write or sync.
        node: the file or folder.
        entry: for link, unlink and rename: folder and name.
        target: for rename: new folder and name.
        data: for write: the content.
    """

    kind: str
    node: int
    entry: tuple[int, str] = (ROOT, "")
    target: tuple[int, str] = (ROOT, "")
    data: bytes = b""

    @property
    def folders(self) -> set[int]:
        """The folders that hold the changed entries; a rename reaches the disk with the one it moves into."""
        return {self.target[0]} if self.kind == "rename" else {self.entry[0]}


@dataclass
class Recorder:
    """Operations below `root`, in order, and the nodes of the present paths."""

    root: Path
    nodes: dict[Path, int] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = count(ROOT)
        for path in (self.root, *sorted(self.root.rglob("*"))):
            self.nodes[path] = next(self._numbers)
        self.initial = {path: node for path, node in self.nodes.items() if node != ROOT}
        self.contents = {node: path.read_bytes() for path, node in self.initial.items() if path.is_file()}

    def covers(self, path: Path) -> bool:
        """Whether operations on the path are recorded."""
        return path != self.root and path.is_relative_to(self.root)

    def entry(self, path: Path) -> tuple[int, str]:
        """Folder and name of a path."""
        return self.nodes[path.parent], path.name

    def link(self, path: Path) -> None:
        """A file or folder was created."""
        self.nodes[path] = next(self._numbers)
        self.operations.append(Operation("link", self.nodes[path], self.entry(path)))

    def unlink(self, path: Path) -> None:
        """A file or folder was removed."""
        if path in self.nodes:
            self.operations.append(Operation("unlink", self.nodes.pop(path), self.entry(path)))

    def rename(self, path: Path, target: Path) -> None:
        """A file, or a folder with all in it, was renamed over `target`."""
        self.operations.append(Operation("rename", self.nodes[path], self.entry(path), self.entry(target)))
        moved = {inner: node for inner, node in self.nodes.items() if inner == path or path in inner.parents}
        for inner in [inner for inner in self.nodes if inner == target or target in inner.parents or inner in moved]:
            del self.nodes[inner]
        self.nodes |= {target / inner.relative_to(path): node for inner, node in moved.items()}

    def write(self, path: Path) -> None:
        """Record the content of a file, if it is not recorded."""
        operation = Operation("write", self.nodes[path], data=path.read_bytes())
        if operation not in self.operations:
            self.operations.append(operation)

    def sync(self, path: Path) -> None:
        """A file or folder was flushed."""
        if path.is_file():
            self.write(path)
        self.operations.append(Operation("sync", self.nodes[path]))


@contextmanager
def recording(root: Path, monkeypatch: Any) -> Iterator[Recorder]:
    """Record what the block does below `root`; the content of a file is recorded when it is flushed or renamed."""
    recorder = Recorder(root)
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "mkdir", "unlink", "rmdir")}

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        is_new = not Path(path).exists()
        descriptor = real["open"](path, flags, *arguments, **options)
        if flags & os.O_CREAT and is_new and recorder.covers(Path(path)):
            recorder.link(Path(path))
        return descriptor

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_relative_to(root):
            recorder.sync(path)
        real["fsync"](descriptor)

    def replace(source: Any, target: Any, **options: Any) -> None:
        path = Path(source)
        if path.is_file():
            recorder.write(path)
        real["replace"](source, target, **options)
        recorder.rename(path, Path(target))

    def watched(name: str, record: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> None:
            real[name](path, *arguments, **options)
            # rmtree works below a descriptor; what it removes is out of the way already.
            if options.get("dir_fd") is None and recorder.covers(Path(path)):
                record(Path(path))

        return call

    with monkeypatch.context() as patch:
        for name, function in (("open", opened), ("fsync", fsync), ("replace", replace)):
            patch.setattr(os, name, function)
        for name, record in (("mkdir", recorder.link), ("unlink", recorder.unlink), ("rmdir", recorder.unlink)):
            patch.setattr(os, name, watched(name, record))
        yield recorder


def crash_states(recorder: Recorder) -> Iterator[tuple[bool, dict[str, bytes]]]:
    """Every distinct state after a crash: whether all operations had returned, and the files by relative path."""
    seen = set()
    for done in range(len(recorder.operations) + 1):
        returned = done == len(recorder.operations)
        for state in _states_after(recorder, recorder.operations[:done]):
            key = (returned, tuple(sorted(state.items())))
            if key not in seen:
                seen.add(key)
                yield returned, state


def _states_after(recorder: Recorder, operations: list[Operation]) -> Iterator[dict[str, bytes]]:
    synced = {(position, operation.node) for position, operation in enumerate(operations) if operation.kind == "sync"}

    def flushed(position: int, nodes: set[int]) -> bool:
        return any(later > position and node in nodes for later, node in synced)

    entries = [(at, operation) for at, operation in enumerate(operations) if operation.kind not in ("write", "sync")]
    pending = [at for at, operation in entries if not flushed(at, operation.folders)][-MAX_PENDING:]
    contents = {node: [data] for node, data in recorder.contents.items()}
    for at, operation in enumerate(operations):
        if operation.kind == "write":
            data = operation.data
            parts = [data] if flushed(at, {operation.node}) else [data, b"", data[: len(data) // 2], bytes(len(data))]
            contents[operation.node] = list(dict.fromkeys(parts))
    for kept in product((False, True), repeat=len(pending)):
        lost = {at for at, keep in zip(pending, kept, strict=True) if not keep}
        tree = _tree(recorder, [operation for at, operation in entries if at not in lost])
        for choice in product(*contents.values()):
            yield dict(_files(tree, dict(zip(contents, choice, strict=True)), ROOT, ""))


def _tree(recorder: Recorder, operations: list[Operation]) -> dict[int, dict[str, int]]:
    """The entries of each folder after the operations."""
    tree: dict[int, dict[str, int]] = {ROOT: {}}
    initial = {recorder.root: ROOT, **recorder.initial}
    for path, node in recorder.initial.items():
        tree.setdefault(initial[path.parent], {})[path.name] = node
    for operation in operations:
        folder, name = operation.entry
        if operation.kind == "link":
            tree.setdefault(folder, {})[name] = operation.node
        elif tree.setdefault(folder, {}).get(name) == operation.node:
            del tree[folder][name]
        if operation.kind == "rename":
            tree.setdefault(operation.target[0], {})[operation.target[1]] = operation.node
    return tree


def _files(
    tree: dict[int, dict[str, int]], contents: dict[int, bytes], folder: int, prefix: str
) -> Iterator[tuple[str, bytes]]:
    for name, node in tree.get(folder, {}).items():
        if node in tree:
            yield from _files(tree, contents, node, f"{prefix}{name}/")
        elif node in contents:
            yield f"{prefix}{name}", contents[node]
