"""Decompression of untrusted gzip streams: every part of the file is read in C, and what yields no data is bounded.

`gzip.GzipFile` reads names in headers and padding a byte at a time in Python, which takes a second per MB.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO

_CHUNK = 1 << 16
# Bytes of headers and empty blocks in a row. Names in headers have a few hundred.
_MAX_SILENT = 1 << 20
# Block-compressed files have a member per 64 KiB, and end with an empty one.
_MAX_MEMBERS, _MEMBER_BYTES = 64, 512
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class GzipStream(io.RawIOBase):
    """The decompressed bytes of a file with one or more gzip members; padding of zeros may follow each.

    Args:
        file: the file, at its start.

    Raises:
        EOFError: on reading, the file ends within a member.
        zlib.error: on reading, a member is damaged or its checksum is wrong.
        gzip.BadGzipFile: on reading, much of the file yields no data.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._data = file, b""
        self._member: Any = None
        self._members = self._produced = self._silent = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the start of a buffer; return the number of bytes, 0 at the end."""
        while self._member or self._begin_member():
            data = self._data or self._file.read(_CHUNK)
            piece = self._member.decompress(data, len(buffer))
            self._data = self._member.unconsumed_tail
            if self._member.eof:
                self._data, self._member = self._member.unused_data, None
            elif not data and not piece:
                raise EOFError("the file ends within a gzip member")
            if piece:
                buffer[: len(piece)] = piece
                self._produced, self._silent = self._produced + len(piece), 0
                return len(piece)
            self._silent += len(data) - len(self._data)
            if self._silent > _MAX_SILENT:
                raise gzip.BadGzipFile(f"more than {_MAX_SILENT >> 20} MiB of it hold no voxels")
        return 0

    def _begin_member(self) -> bool:
        """Skip padding and begin the next member, if there is one."""
        data = self._padding_skipped(self._data)
        while not data:
            if not (block := self._file.read(_CHUNK)):
                return False
            data = self._padding_skipped(block)
        self._data, self._member = data, zlib.decompressobj(_GZIP_WINDOW)
        self._members += 1
        if self._members > _MAX_MEMBERS + self._produced // _MEMBER_BYTES:
            raise gzip.BadGzipFile(f"its first {self._members} members hold only {self._produced} bytes")
        return True

    def _padding_skipped(self, data: bytes) -> bytes:
        return data.lstrip(b"\0") if self._members else data


def open_gzip(file: BinaryIO) -> BinaryIO:
    """The decompressed bytes of a gzip file, as `GzipStream`, with reads of any size."""
    return io.BufferedReader(GzipStream(file), _CHUNK)
