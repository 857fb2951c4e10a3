"""Opening files that come from anywhere: regular ones alone, packed or not, and what goes wrong put into one line."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from dualflow.errors import HeaderError

_GZIP = b"\x1f\x8b"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: Path) -> int:
    """Size in bytes of a regular file; nothing else is opened, for a pipe would let its reader wait for ever.

    Raises:
        HeaderError: there is no such file, or it is something else.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise HeaderError(
                f"{path}: is a link to what is not there, expected a regular file; fetch it (such as with datalad get)"
            ) from error
        reason = getattr(error, "strerror", None) or "not a name of a file"
        raise HeaderError(
            f"{path}: cannot be looked up ({reason}), expected a regular file; check its name and permissions"
        ) from error
    kind = _KINDS.get(stat.S_IFMT(state.st_mode))
    if kind:
        raise HeaderError(f"{path}: is {kind}, expected a regular file, .nii or .nii.gz; check the path")
    return state.st_size


@contextmanager
def opened(path: Path, *, compressed: bool) -> Iterator[BinaryIO]:
    """Open a regular file to read, unpacked if need be.

    Raises:
        HeaderError: the system or the decompressor gives up, then or later.
    """
    try:
        with gzip.open(path) if compressed else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
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


def first_bytes(path: Path, count: int) -> tuple[bytes, bool]:
    """The first bytes of a regular file, at most `count`, unpacked if need be, and whether they were packed.

    Raises:
        HeaderError: it cannot be read.
    """
    with opened(path, compressed=False) as stream:
        compressed = stream.read(len(_GZIP)) == _GZIP
    with opened(path, compressed=compressed) as stream:
        return stream.read(count), compressed
