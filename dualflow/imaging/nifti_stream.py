"""Reading of untrusted files: only regular files are opened, and every failure becomes a one-line error."""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from dualflow.errors import HeaderError
from dualflow.imaging.gzip_stream import open_gzip

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Hasher(Protocol):
    """A running digest, such as `hashlib.sha256()`."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


def require_file(path: Path) -> int:
    """Size in bytes of a regular file; others are refused without opening, because reading a pipe can block forever.

    Raises:
        HeaderError: the file does not exist or is not a regular file.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise HeaderError(
                f"{path}: is a broken link, expected a regular file; fetch it (such as with datalad get)"
            ) from error
        reason = getattr(error, "strerror", None) or "not a file name"
        raise HeaderError(
            f"{path}: cannot be looked up ({reason}), expected a regular file; check its name and permissions"
        ) from error
    kind = _KINDS.get(stat.S_IFMT(state.st_mode))
    if kind:
        raise HeaderError(f"{path}: is {kind}, expected a regular file, .nii or .nii.gz; check the path")
    return state.st_size


@contextmanager
def open_image(path: Path, *, compressed: bool, file_hash: Hasher | None = None) -> Iterator[BinaryIO]:
    """Open a regular file for reading, decompressed if it is a gzip stream.

    Args:
        path: the file.
        compressed: whether it is a gzip stream.
        file_hash: updated with every byte as stored on disk, below the decompression.

    Raises:
        HeaderError: the file cannot be read or decompressed, on opening or later.
    """
    with _readable_errors(path), path.open("rb") as file:
        raw = cast(BinaryIO, io.BufferedReader(_HashedFile(file, file_hash), _CHUNK)) if file_hash else file
        yield open_gzip(raw) if compressed else raw
        while file_hash and raw.read(_CHUNK):  # hash the bytes that were not read
            pass


def first_bytes(path: Path, count: int) -> tuple[bytes, bool]:
    """The first bytes of a regular file, at most `count`, decompressed; and whether they were compressed.

    Raises:
        HeaderError: the file cannot be read.
    """
    with _readable_errors(path), path.open("rb") as file:
        compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        stream = open_gzip(file) if compressed else file
        return stream.read(count), compressed


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Convert errors of the system and the decompressor to errors that name the file and the remedy."""
    try:
        yield
    except EOFError as error:
        raise HeaderError(
            f"{path}: its {require_file(path)} bytes end too early for a gzip stream, cannot be read to its end; copy "
            "it again"
        ) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise HeaderError(
            f"{path}: its gzip stream is damaged ({error}), cannot be read to its end; copy it again"
        ) from error
    except OSError as error:
        raise HeaderError(f"{path}: cannot be read ({error.strerror}); check the disk and permissions") from error


class _HashedFile(io.RawIOBase):
    """A file whose bytes go into a digest as they are read."""

    def __init__(self, file: BinaryIO, file_hash: Hasher) -> None:
        self._file, self._hash = file, file_hash

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)
