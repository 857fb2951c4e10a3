"""Atomic writes of files and folders: a temporary beside the target is flushed, checked and renamed over it.

A reader sees the old file, the new file or no file, but never an incomplete one.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dualflow.errors import CommitError
from dualflow.temporaries import TEMP_PREFIX, sweep_beside, temporary_path

_CHUNK = 1 << 20


@contextmanager
def committing(path: Path | str, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffixes, and rename it over `path` on a clean exit.

    Before that, the file is flushed to disk and checked: it is not empty, a gzip stream is intact, JSON and safetensors
    headers parse. Its mode follows the umask, not the library that wrote it. On an error, `path` does not change and
    the temporary file is removed.

    Args:
        path: the file to write.
        private: whether only its owner may read it.

    Raises:
        CommitError: the block wrote nothing, the content does not verify, or the file system refused it.
    """
    path = Path(path)
    temp = temporary_path(path)
    try:
        with refused_writes(path):
            _make_folder(path.parent)
            mode = _create(temp, 0o600 if private else 0o666)
            yield temp
            if temp.stat().st_mode != mode:  # safetensors and tempfile create files that only their owner may read
                temp.chmod(stat.S_IMODE(mode))
            _fsync(temp)
            _verify(temp, path)
            temp.replace(path)
            _fsync(path.parent)
    finally:
        with suppress(OSError):  # the folder may not exist
            temp.unlink(missing_ok=True)


@contextmanager
def committing_folder(folder: Path | str, *, keep_hidden: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it to `folder` on a clean exit.

    It replaces a folder of that name. The files in it are written with `committing`. On an error, `folder` does not
    change and the temporary folder is removed.

    Args:
        folder: the folder to write.
        keep_hidden: whether hidden files and folders of an earlier one, such as those of version control, are copied.

    Raises:
        CommitError: the file system refused it.
    """
    folder = Path(folder)
    temp, old = temporary_path(folder), temporary_path(folder)
    try:
        with refused_writes(folder):
            _make_folder(folder.parent)
            sweep_beside(folder)
            temp.mkdir()
        yield temp
        with refused_writes(folder):
            if keep_hidden and folder.is_dir():
                _copy_hidden(folder, temp)
            _fsync(temp)
            _exchange(folder, temp, old)
            _fsync(folder.parent)
    finally:
        for leftover in (temp, old):
            shutil.rmtree(leftover, ignore_errors=True)


def commit_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with committing(path) as temp:
        temp.write_bytes(data)


def commit_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    commit_bytes(path, text.encode())


def commit_json(path: Path | str, value: Any, *, private: bool = False) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; NaN is refused because JSON has no NaN.

    Only the owner may read a `private` file.
    """
    with committing(path, private=private) as temp:
        temp.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=str) + "\n")


@contextmanager
def refused_writes(path: Path) -> Iterator[None]:
    """Report an error of the file system as a CommitError about `path`.

    Raises:
        CommitError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = "free space or change the output folder"
        if error.errno == errno.ENAMETOOLONG:
            remedy = "shorten the subject or session label, or the output folder"
        raise CommitError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


def _copy_hidden(folder: Path, temp: Path) -> None:
    for entry in folder.glob(".*"):
        if entry.name.startswith(TEMP_PREFIX):  # of a process that was killed
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, temp / entry.name, symlinks=True)
        elif entry.is_file() or entry.is_symlink():
            shutil.copy2(entry, temp / entry.name, follow_symlinks=False)


def _exchange(folder: Path, temp: Path, old: Path) -> None:
    """Rename `temp` to `folder`; an earlier folder becomes `old`, and comes back if that fails."""
    if not folder.exists():
        temp.replace(folder)
        return
    folder.replace(old)
    try:
        temp.replace(folder)
    except OSError:
        old.replace(folder)
        raise


def _make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, each flushed into the one that holds it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _create(path: Path, mode: int) -> int:
    """Create an empty file with a mode, less what the umask takes from it, and return what is left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify_gzip(path: Path) -> None:
    with gzip.open(path, "rb") as stream:
        while stream.read(_CHUNK):
            pass


def _verify_json(path: Path) -> None:
    json.loads(path.read_text())


def _verify_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError("the tensor data are truncated")


_VERIFIERS: dict[str, Callable[[Path], None]] = {
    ".gz": _verify_gzip,
    ".json": _verify_json,
    ".safetensors": _verify_safetensors,
}


def _verify(temp: Path, path: Path) -> None:
    """Check what was written to `temp` before it becomes `path`."""
    if temp.stat().st_size == 0:
        raise CommitError(f"{path}: nothing was written; an empty file is not committed")
    verifier = _VERIFIERS.get(path.suffix)
    if verifier is None:
        return
    try:
        verifier(temp)
    except (ValueError, KeyError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CommitError(f"{path}: content does not verify ({error}); nothing was committed") from error
