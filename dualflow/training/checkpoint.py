"""Training states on disk: a safetensors file each, written atomically, with JSON facts and a digest in its header."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dualflow.errors import CheckpointError
from dualflow.models.tensors import read_verified, save_tensors

_FACTS = "facts"


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the training state of `step`; of the others, only the newest before it remains, in case this is damaged.

    Raises:
        CommitError: the file cannot be written; earlier states remain.
    """
    path = folder / f"state-{step:08d}.safetensors"
    save_tensors(path, tensors, {_FACTS: json.dumps(facts)})
    # Later states are damaged ones that the training did not resume.
    kept = [state for state in states(folder) if state <= path][-2:]
    for state in set(states(folder)) - set(kept):
        state.unlink()


def load_newest_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and facts of the newest intact training state, or None; damaged states are skipped loudly."""
    paths = states(folder)
    for number, path in enumerate(reversed(paths), 1):
        try:
            tensors, metadata = read_verified(path)
            return tensors, json.loads(metadata[_FACTS])
        except (CheckpointError, ValueError, KeyError) as error:
            remedy = "training afresh" if number == len(paths) else "trying the previous one"
            print(f"warning: {path}: damaged training state skipped ({error}); {remedy}", file=sys.stderr)
    return None


def states(folder: Path) -> list[Path]:
    """Return the training states in `folder`, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def remove_states(folder: Path) -> None:
    """Remove the training states in `folder`; those of its parts remain."""
    for state in states(folder):
        state.unlink()


def forget_states(folder: Path) -> None:
    """Remove the training states in `folder` and in the folders of its parts, such as the source's."""
    for part in (folder, *{state.parent for state in folder.glob("*/state-*.safetensors")}):
        remove_states(part)
