"""Table of cached digests of raw files; a file is read again only if its size or modification time has changed.

Each row has a checksum, so that a damaged row is dropped and its file is read again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pandas as pd

from dualflow.commit import commit_text
from dualflow.data.tsv import read_table, table_text
from dualflow.errors import DataError
from dualflow.imaging.raw_image import ImageDigest, digest_image
from dualflow.progress import track

COLUMNS = ["path", "size", "mtime_ns", "sha256", "values_sha256", "minimum", "maximum", "checksum"]
_SAVE_EVERY_S = 10.0
"""Seconds of work that a killed process loses at most."""


def digest_files(root: Path, paths: Sequence[Path], table: Path | None = None) -> dict[Path, ImageDigest]:
    """Digest the files of a study; a file that cannot be read has no digest.

    Args:
        root: folder of the study.
        paths: files relative to it.
        table: table of cached digests, which is updated as files are read; None reads every file.

    Raises:
        CommitError: the table cannot be written.
    """
    cached = read_digests(table) if table else {}
    digests = {path: cached[path] for path in paths if path in cached and cached[path].is_current(root / path)}
    unread = [path for path in paths if path not in digests]
    saved = time.monotonic()
    for path in track(unread, "look for duplicates"):
        if (digest := _digest(root / path)) is not None:
            digests[path] = digest
        if table and time.monotonic() - saved > _SAVE_EVERY_S:
            write_digests(table, digests)
            saved = time.monotonic()
    if table and unread:
        write_digests(table, digests)
    return digests


def read_digests(table: Path) -> dict[Path, ImageDigest]:
    """Digests by path, without damaged rows; empty if the table is missing or damaged."""
    try:
        rows = read_table(table)[COLUMNS].itertuples(index=False)
        return {
            Path(path): ImageDigest(int(size), int(mtime), file, voxels, float(low or "nan"), float(high or "nan"))
            for path, size, mtime, file, voxels, low, high, checksum in rows
            if checksum == _checksum(path, size, mtime, file, voxels, low or "nan", high or "nan")
        }
    except (DataError, KeyError, TypeError, ValueError):
        return {}


def write_digests(table: Path, digests: Mapping[Path, ImageDigest]) -> None:
    """Write digests, sorted by path.

    Raises:
        CommitError: the table cannot be written.
    """
    rows = [tuple(map(str, (path.as_posix(), *vars(digests[path]).values()))) for path in sorted(digests)]
    commit_text(table, table_text(pd.DataFrame([(*row, _checksum(*row)) for row in rows], columns=COLUMNS)))


def _checksum(*cells: str) -> str:
    return sha256("\t".join(cells).encode()).hexdigest()[:12]


def _digest(file: Path) -> ImageDigest | None:
    try:
        return digest_image(file)
    except DataError:
        return None
