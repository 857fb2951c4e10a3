"""Duplicate scans: the same voxels under two names, which could leak from the training set into the test set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from dualflow.data.bids_files import Exclusions, natural_order
from dualflow.data.scan_digests import digest_files
from dualflow.data.tsv import summarise_names
from dualflow.errors import PairingError
from dualflow.layout import Scan

Entry = tuple[Scan, Path]
"""A scan and one of its files, relative to the root of the study."""


def find_duplicates(root: Path, entries: Sequence[Entry], digests: Path | None = None) -> list[list[Entry]]:
    """Group files with the same voxels; each group is in the order of subjects and visits.

    A file that cannot be read is in no group: preprocessing excludes it with the reason.

    Args:
        root: folder of the study.
        entries: the files to compare; a file that is listed for two scans counts as a duplicate.
        digests: table of cached digests; see `digest_files`.

    Raises:
        CommitError: the table cannot be written.
    """
    file_digests = digest_files(root, sorted({path for _, path in entries}), digests)
    groups: dict[str, list[Entry]] = defaultdict(list)
    for scan, path in sorted(entries, key=lambda entry: natural_order(f"{entry[0].key} {entry[1]}")):
        if path in file_digests:
            groups[file_digests[path].values_sha256].append((scan, path))
    return [group for group in groups.values() if len(group) > 1]


def exclude_duplicates(groups: Iterable[Sequence[Entry]], paired: Collection[Scan] = ()) -> Exclusions:
    """The scans to exclude from each group: all if it spans subjects, otherwise all but one.

    The true subject of a group that spans subjects is unknown. A scan is always excluded if two of its own files are
    identical.

    Args:
        groups: the duplicates.
        paired: scans with a target; the first of them is kept, or else the first scan. The MR of an earlier visit is
            often copied into the session of the PET.
    """
    excluded: Exclusions = {}
    for group in groups:
        scans = list(dict.fromkeys(scan for scan, _ in group))
        one_subject = len({scan.subject for scan in scans}) == 1
        first = next((scan for scan in scans if scan in paired), scans[0])
        once = [scan for scan, _ in group].count(first) == 1
        kept_scan = first if one_subject and once else None
        for scan, path in group:
            copies = [entry_name(*entry) for entry in group if entry != (scan, path)]
            error = PairingError(
                f"{path} holds the same voxels as {summarise_names(copies)}; replace or remove the copy"
            )
            if scan != kept_scan:
                excluded.setdefault(scan.key, error)
    return excluded


def entry_name(scan: Scan, path: Path) -> str:
    """Path of a file, with its scan where the name does not contain it."""
    return str(path) if path.name.startswith(scan.key) else f"{path} ({scan.key})"
