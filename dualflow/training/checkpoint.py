"""Training states on disk: one safetensors file each, written atomically, with JSON facts in its header."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualflow.models.tensors import save_tensors

_FACTS = "facts"


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int = 2) -> None:
    """Write the training state of `step`, and remove all but the `keep` newest.

    Raises:
        CommitError: the file cannot be written; earlier states remain.
    """
    save_tensors(folder / f"state-{step:08d}.safetensors", tensors, {_FACTS: json.dumps(facts)})
    for old in states(folder)[:-keep]:
        old.unlink()


def load_newest_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and facts of the newest intact training state, or None; broken states are skipped."""
    for path in reversed(states(folder)):
        try:
            with safe_open(path, framework="pt") as stream:
                facts = json.loads(stream.metadata()[_FACTS])
                return {key: stream.get_tensor(key) for key in stream.keys()}, facts  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path}: broken training state skipped ({error}); trying the previous one", file=sys.stderr)
    return None


def states(folder: Path) -> list[Path]:
    """Return the training states in `folder`, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def forget_states(folder: Path) -> None:
    """Remove the training states in `folder` and in the folders of its parts, such as the mean's."""
    for state in [*states(folder), *folder.glob("*/state-*.safetensors")]:
        state.unlink()
