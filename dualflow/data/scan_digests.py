"""Table of cached digests of raw files; a file is read again only if its size or modification time has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import islice
from pathlib import Path

import pandas as pd

from dualflow.commit import commit_text, digest_of
from dualflow.data.tsv import read_table, table_text
from dualflow.errors import DataError
from dualflow.imaging.raw_image import ImageDigest, digest_image
from dualflow.progress import track

COLUMNS = ["path", "size", "mtime_ns", "sha256", "voxels_sha256", "minimum", "maximum", "check"]
"""The last column is a digest of the others in its row."""
_SAVE_EVERY = 100


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
    results = ((path, digest) for path in track(unread, "look for duplicates") if (digest := _digest(root / path)))
    while batch := dict(islice(results, _SAVE_EVERY)):
        digests |= batch
        if table:
            write_digests(table, digests)
    return digests


def read_digests(table: Path) -> dict[Path, ImageDigest]:
    """Digests by path, without damaged rows; empty if the table is missing or unreadable."""
    digests = {}
    try:
        for path, size, mtime, sha256, voxels, low, high, check in read_table(table)[COLUMNS].itertuples(index=False):
            digest = ImageDigest(int(size), int(mtime), sha256, voxels, float(low or "nan"), float(high or "nan"))
            if check == _check(Path(path), digest):
                digests[Path(path)] = digest
    except (DataError, KeyError, TypeError, ValueError):
        return {}
    return digests


def write_digests(table: Path, digests: Mapping[Path, ImageDigest]) -> None:
    """Write digests, sorted by path.

    Raises:
        CommitError: the table cannot be written.
    """
    rows = [(path.as_posix(), *astuple(digests[path]), _check(path, digests[path])) for path in sorted(digests)]
    commit_text(table, table_text(pd.DataFrame(rows, columns=COLUMNS)))


def _check(path: Path, digest: ImageDigest) -> str:
    return digest_of([path.as_posix(), *astuple(digest)])[:16]


def _digest(file: Path) -> ImageDigest | None:
    try:
        return digest_image(file)
    except DataError:
        return None
