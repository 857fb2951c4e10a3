"""Scans that hold the same voxels under two names: a copy that would be learnt twice, or tested on what was learnt."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from dualflow.commit import commit_text
from dualflow.data.bids_files import Refused, natural_order
from dualflow.data.tsv import read_table, summarise_names, table_text
from dualflow.errors import DataError, PairingError
from dualflow.imaging.nifti_header import check_header
from dualflow.imaging.volume import stored_voxels
from dualflow.layout import Scan
from dualflow.progress import track

Entry = tuple[Scan, Path]
"""A scan and one of its files, relative to the root of the study."""
COLUMNS = ["path", "size", "mtime_ns", "voxels_sha256"]
_KEEP_EVERY = 100


def voxel_digest(path: Path) -> str:
    """Hex SHA-256 of a scan's shape, voxel type and stored voxels; name and other header fields do not count.

    The file passes the header gate first and is then read in small pieces.

    Raises:
        DataError: the file is refused by its header, or cannot be read to its end.
    """
    gate = check_header(path, 4, series=True)
    digest = hashlib.sha256(f"{gate.shape} {gate.dtype.str}".encode())
    for piece in stored_voxels(gate):
        digest.update(piece.data)
    return digest.hexdigest()


def find_duplicates(root: Path, entries: Sequence[Entry], cache: Path | None = None) -> list[list[Entry]]:
    """Groups of files with the same voxels, each in the order of people and visits.

    A file that cannot be read is in none: preprocessing will say why.

    Args:
        root: folder of the study.
        entries: the files to compare; a file that two scans share is a group of its own.
        cache: table of digests, by path, size and time; a file that it knows is not read again.

    Raises:
        CommitError: the cache cannot be written.
    """
    digests = _digests(root, sorted({path for _, path in entries}), cache)
    groups: dict[str, list[Entry]] = defaultdict(list)
    for scan, path in sorted(entries, key=lambda entry: natural_order(f"{entry[0].key} {entry[1]}")):
        if path in digests:
            groups[digests[path]].append((scan, path))
    return [group for group in groups.values() if len(group) > 1]


def refuse_duplicates(groups: Iterable[Sequence[Entry]]) -> Refused:
    """The scans to set aside: all of a group that spans people, for no one knows whose it is; else all but the first.

    A scan two of whose own files are alike is set aside in any case.
    """
    refused: Refused = {}
    for group in groups:
        scans = list(dict.fromkeys(scan for scan, _ in group))
        one_person = len({scan.subject for scan in scans}) == 1
        spared = scans[0] if one_person and len(scans) > 1 else None
        for scan, path in group:
            others = [entry_name(*entry) for entry in group if entry != (scan, path)]
            error = PairingError(f"{path} holds the same voxels as {summarise_names(others)}; replace or take out the copy")
            if scan != spared:
                refused.setdefault(scan.key, error)
    return refused


def entry_name(scan: Scan, path: Path) -> str:
    """A file with the scan that it is of, where its own name does not say so."""
    return str(path) if path.name.startswith(scan.key) else f"{path} ({scan.key})"


def _digests(root: Path, paths: Sequence[Path], cache: Path | None) -> dict[Path, str]:
    """Voxel digests of the files that can be read; what is new goes into the cache as it is found."""
    marks = {path: (path.as_posix(), *_size_and_time(root / path)) for path in paths}
    known = _read_cache(cache) if cache else {}
    digests = {path: known[mark] for path, mark in marks.items() if mark in known}
    new = [path for path in paths if path not in digests]
    found = ((path, digest) for path in track(new, "look for duplicates") if (digest := _digest(root / path)))
    while new and (batch := dict(islice(found, _KEEP_EVERY))):
        digests |= batch
        if cache:
            rows = [(*marks[path], digests[path]) for path in sorted(digests)]
            commit_text(cache, table_text(pd.DataFrame(rows, columns=COLUMNS)))
    return digests


def _digest(file: Path) -> str | None:
    try:
        return voxel_digest(file)
    except DataError:
        return None


def _size_and_time(file: Path) -> tuple[str, str]:
    """What changes when a file is replaced."""
    state = file.stat()
    return str(state.st_size), str(state.st_mtime_ns)


def _read_cache(cache: Path) -> dict[tuple[str, str, str], str]:
    """Digests by path, size and time; nothing of a table that is missing or damaged."""
    try:
        table = read_table(cache)[COLUMNS].dropna()
    except (DataError, KeyError):
        return {}
    return {(path, size, time): digest for path, size, time, digest in table.itertuples(index=False)}
