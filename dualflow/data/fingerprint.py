"""The fingerprint of a study: a digest that changes when its scans or tables are added, removed or replaced."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from dualflow.config import Config
from dualflow.digests import digest_of, sha256
from dualflow.layout import SIDECAR_LEVELS
from dualflow.modalities import MODALITIES

# The largest table that `tsv.read_table` accepts. The Snakefile computes fingerprints, so pandas is not imported here.
MAX_BYTES = 16 << 20


def study_fingerprint(config: Config) -> str:
    """Digest of the files that the index reads: the dataset, the study's masks, its tables of splits and exclusions.

    Tables and sidecars count by content. Images count by size and modification time because hashing a whole study
    takes long; so do tables that are too large to be valid.
    """
    study = config.study
    scans = _table_files(study.samples, config.bids) if study.samples else _dataset_files(config.bids)
    masks = _dataset_files(study.masks) if study.masks else []
    splits = [file for file in (config.split.file, study.exclusions) if file]
    return digest_of([_states(scans), _states(masks), _states(splits)])


def _dataset_files(root: Path) -> list[Path]:
    """The files of a BIDS dataset that a study reads."""
    kinds = {row.datatype for row in MODALITIES.values()}
    files = [root / "participants.tsv", *(file for file in _entries(root) if file.suffix == ".json")]
    for subject in _entries(root, "sub-"):
        for folder in (subject, *_entries(subject, "ses-")):
            for entry in _entries(folder):
                if entry.name in kinds:
                    files += _entries(entry)
                elif entry.name.endswith((".json", "_sessions.tsv")):
                    files.append(entry)
    return files


def _entries(folder: Path, prefix: str = "") -> list[Path]:
    """What lies in a folder, links included; nothing if it is no folder."""
    try:
        # One listing of each folder is several times faster than a glob for each kind of file.
        return [entry for entry in folder.iterdir() if entry.name.startswith(prefix)]
    except OSError:
        return []


def _table_files(table: Path, root: Path) -> list[Path]:
    """A table of scans, the files in `root` that its cells name, and the sidecars that may apply to them.

    The index checks whether they are usable.
    """
    readable = table.is_file() and table.stat().st_size <= MAX_BYTES
    text = table.read_bytes().decode(errors="replace") if readable else ""
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("\t")} - {""}
    files = [root / cell for cell in cells]
    folders = {folder for file in files if _state(file) for folder in list(file.parents)[:SIDECAR_LEVELS]}
    sidecars = {entry for folder in folders for entry in _entries(folder) if entry.suffix == ".json"}
    return [table, table.with_suffix(".json"), *files, *sidecars]


def _states(files: Iterable[Path]) -> list[tuple[str, str]]:
    return sorted((str(file), state) for file in files if (state := _state(file)))


def _state(file: Path) -> str:
    """A text that changes with a file's content; '' if there is no file."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return ""
        small = file.suffix in (".tsv", ".json") and status.st_size <= MAX_BYTES
    except (OSError, ValueError):  # it is missing, or a cell is no file name
        return ""
    return sha256(file) if small else f"{status.st_size}:{status.st_mtime_ns}"
