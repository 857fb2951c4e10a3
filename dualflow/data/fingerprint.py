"""The fingerprint of a study: a digest that changes when its scans or tables are added, removed or replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dualflow.commit import digest_of, sha256
from dualflow.config import Config
from dualflow.layout import sidecar_path
from dualflow.modalities import MODALITIES

# The largest table that `tsv.read_table` accepts. The Snakefile computes fingerprints, so pandas is not imported here.
MAX_BYTES = 16 << 20


def study_fingerprint(config: Config) -> str:
    """Digest of the files that the index reads: the dataset, the study's own masks and its table of splits.

    Tables and sidecars count by content. Images count by size and modification time because hashing a whole study
    takes long; so do tables that are too large to be valid.
    """
    study = config.study
    scans = _table_files(study.samples) if study.samples else _dataset_files(config.bids)
    masks = _dataset_files(study.masks) if study.masks else []
    splits = [config.split.file] if config.split.file else []
    return digest_of([_states(scans), _states(masks), _states(splits)])


def _dataset_files(root: Path) -> list[Path]:
    """The files of a BIDS dataset that a study reads."""
    kinds = sorted({row.datatype for row in MODALITIES.values()})
    # `**` does not follow links to session folders, but the index does.
    scans = [f"sub-*/{session}{kind}/*" for session in ("", "ses-*/") for kind in kinds]
    tables = ["participants.tsv", "sub-*/*_sessions.tsv"]
    inherited = ["*.json", "sub-*/*.json", "sub-*/ses-*/*.json"]
    return [file for pattern in [*tables, *inherited, *scans] for file in root.glob(pattern)]


def _table_files(table: Path) -> list[Path]:
    """A table of scans and the files that its cells name; the index checks whether they are usable."""
    readable = table.is_file() and table.stat().st_size <= MAX_BYTES
    text = table.read_bytes().decode(errors="replace") if readable else ""
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("\t")} - {""}
    files = [table.parent / cell for cell in cells]
    return [table, table.with_suffix(".json"), *files, *map(sidecar_path, files)]


def _states(files: Iterable[Path]) -> list[tuple[str, str]]:
    return sorted((str(file), state) for file in files if (state := _state(file)))


def _state(file: Path) -> str:
    """A text that changes with a file's content; '' if there is no file."""
    try:
        if not file.is_file():
            return ""
        status = file.stat()
        small = file.suffix in (".tsv", ".json") and status.st_size <= MAX_BYTES
    except OSError:  # a cell that is too long for a file name
        return ""
    return sha256(file) if small else f"{status.st_size}:{status.st_mtime_ns}"
