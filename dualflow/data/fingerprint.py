"""What the index of a study rests on, in one digest: it changes when scans or tables come, go or are replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dualflow.commit import digest_of, sha256
from dualflow.config import Config
from dualflow.data.tsv import MAX_BYTES
from dualflow.imaging.volume import sidecar_path
from dualflow.modalities import MODALITIES


def study_fingerprint(config: Config) -> str:
    """Digest of the dataset, the study's own masks and the kept splits.

    Tables and sidecars count by content, images by size and time, for hashing a whole study takes long; so do tables
    that are too large to be one.
    """
    study = config.study
    samples = _named_in(study.samples) if study.samples else _dataset(config.bids)
    masks = _dataset(study.masks) if study.masks else []
    return digest_of([_marks(samples), _marks(masks), _marks([config.split.file] if config.split.file else [])])


def _dataset(root: Path) -> list[Path]:
    """What a study reads from a BIDS dataset."""
    kinds = sorted({row.datatype for row in MODALITIES.values()})
    # Spelled out, for `**` does not enter a session folder that is a link, and the index does.
    scans = [f"sub-*/{session}{kind}/*" for session in ("", "ses-*/") for kind in kinds]
    tables = ["participants.tsv", "sub-*/*_sessions.tsv"]
    inherited = ["*.json", "sub-*/*.json", "sub-*/ses-*/*.json"]
    return [file for pattern in [*tables, *inherited, *scans] for file in root.glob(pattern)]


def _named_in(table: Path) -> list[Path]:
    """A table of samples and all that its cells name; whether it can be used is for the index to say."""
    readable = table.is_file() and table.stat().st_size <= MAX_BYTES
    text = table.read_bytes().decode(errors="replace") if readable else ""
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("\t")} - {""}
    files = [table.parent / cell for cell in cells]
    return [table, table.with_suffix(".json"), *files, *map(sidecar_path, files)]


def _marks(files: Iterable[Path]) -> list[tuple[str, str]]:
    return sorted((str(file), mark) for file in files if (mark := _mark(file)))


def _mark(file: Path) -> str:
    """What changes with a file's content; '' where there is no file."""
    try:
        if not file.is_file():
            return ""
        state = file.stat()
        small = file.suffix in (".tsv", ".json") and state.st_size <= MAX_BYTES
    except OSError:  # a cell too long to be a name
        return ""
    return sha256(file) if small else f"{state.st_size}:{state.st_mtime_ns}"
