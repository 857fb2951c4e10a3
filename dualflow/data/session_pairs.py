"""Pairs of a source and a target of one subject that lie in different sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from dualflow.config import StudyConfig
from dualflow.data.bids_files import Files
from dualflow.layout import Scan


def session_partners(files: Files, study: StudyConfig) -> dict[Scan, Scan]:
    """The only scan of a subject with the target alone -> their only one with the source and without a target.

    A subject with several of either has none: no date of BIDS is certain enough to choose by.
    """
    subjects: dict[str, list[Scan]] = defaultdict(list)
    for scan in files:
        subjects[scan.subject].append(scan)
    partners: dict[Scan, Scan] = {}
    for scans in subjects.values():
        alone = [scan for scan in scans if set(files[scan]) == {study.target}]
        waiting = [scan for scan in scans if study.source in files[scan] and study.target not in files[scan]]
        if len(alone) == len(waiting) == 1:
            partners[alone[0]] = waiting[0]
    return partners


def join_sessions(files: Files, partners: Mapping[Scan, Scan]) -> Files:
    """Move each target to the scan of its source."""
    joined = dict(files)
    for target, source in partners.items():
        joined[source] = {**files[source], **joined.pop(target)}
    return joined
