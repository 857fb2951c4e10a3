"""MODEL_FILES: the files of a model folder, and the largest size of each that is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualflow.errors import CheckpointError

WEIGHTS, CARD = "model.safetensors", "model.json"
REFERENCE_TENSORS, REFERENCE = "reference.safetensors", "reference.json"
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class ModelFile:
    """A file of a model folder.

    Attributes:
        content: what it holds, for people.
        limit: largest size in bytes; a larger file is damaged or hostile and is not read.
        required: whether every model has it.
    """

    content: str
    limit: int
    required: bool = False


MODEL_FILES: dict[str, ModelFile] = {
    WEIGHTS: ModelFile("weights", 16 * GIB, required=True),
    CARD: ModelFile("model card: architecture, preprocessing, side information, calibration", MIB, required=True),
    REFERENCE_TENSORS: ModelFile("what the training scans look like, for verdicts on new scans", 4 * GIB),
    REFERENCE: ModelFile("thresholds of those verdicts", MIB),
}
"""The files that belong to a model, by name. Checkpoints, histories and manifests of its study do not."""


def read_limited(path: Path, limit: int) -> str:
    """Read a text file, unless it is larger than `limit` bytes.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
        CheckpointError: the file is too large.
    """
    check_size(path, limit)
    return path.read_text(encoding="utf-8")


def check_size(path: Path, limit: int) -> None:
    """Refuse a file that is larger than `limit` bytes.

    Raises:
        OSError: there is no such file.
        CheckpointError: the file is too large.
    """
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(f"{path}: has {size:,} bytes, expected at most {limit:,}; copy the model again")
