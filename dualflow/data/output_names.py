"""Scans whose output names the file system cannot hold, because a subject or session label is too long."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dualflow.config import StudyConfig
from dualflow.data.bids_files import Exclusions
from dualflow.errors import DataError
from dualflow.layout import Layout, Scan
from dualflow.lifetime import HOST
from dualflow.modalities import modality
from dualflow.temporaries import TEMP_PREFIX

# A file is written under a temporary name first: process ids have up to 7 digits, the random part 8.
_TEMPORARY_BYTES = len(f"{TEMP_PREFIX}{HOST}-{'9' * 7}-{'0' * 8}-")


def scans_with_long_names(scans: Iterable[Scan], study: StudyConfig, out: Path) -> Exclusions:
    """The scans with an output name that is too long for the file system, with the reason.

    Args:
        scans: the scans of a study.
        study: its modalities.
        out: folder of the results, which may not exist yet.
    """
    limit, excluded = name_limit(out), Exclusions()
    for scan in scans:
        name = longest_name(scan, study)
        if (excess := len(name) - limit) > 0:
            excluded[scan.key] = DataError(
                f"its outputs have names of up to {len(name)} bytes, expected at most {limit} on this file system; "
                f"shorten its subject or session label by {excess} characters"
            )
    return excluded


def longest_name(scan: Scan, study: StudyConfig) -> str:
    """The longest name of a file that preprocessing or conversion writes for a scan."""
    layout = Layout(Path())
    paths = [layout.on_grid(scan, modality(name)) for name in study.modalities]
    paths.append(layout.mask_on_grid(scan, modality(study.source)))
    return max((path.name for path in paths), key=len)


def name_limit(folder: Path) -> int:
    """Largest number of bytes of a name that can be committed to an existing or future folder."""
    parents = (folder.absolute(), *folder.absolute().parents)
    existing = next(parent for parent in parents if parent.is_dir())
    return os.pathconf(existing, "PC_NAME_MAX") - _TEMPORARY_BYTES
