"""Pairs of a source and a target of one subject that lie in different sessions."""

from __future__ import annotations

from collections import defaultdict

from dualflow.config import StudyConfig
from dualflow.data.bids_files import Files
from dualflow.layout import Scan


def join_sessions(files: Files, study: StudyConfig) -> Files:
    """Move the only target that a subject has without sources to their only scan with sources and without a target.

    A subject with several of either is left as it is: no date of BIDS is certain enough to choose by.
    """
    subjects: dict[str, list[Scan]] = defaultdict(list)
    for scan in files:
        subjects[scan.subject].append(scan)
    joined = dict(files)
    for scans in subjects.values():
        alone = [scan for scan in scans if set(files[scan]) == {study.target}]
        waiting = [scan for scan in scans if study.source in files[scan] and study.target not in files[scan]]
        if len(alone) == len(waiting) == 1:
            joined[waiting[0]] = {**files[waiting[0]], **joined.pop(alone[0])}
    return joined
