"""Models and training states on disk: safetensors for tensors, JSON for the rest, nothing that can run code.

A model folder holds `model.safetensors` and `model.json`, its card: what it is, what it was trained on, and the hash of
its weights. The card is written last, and a model whose weights do not match its card is refused.
A training state is a single safetensors file with its JSON in the header, so that it is whole or absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualflow.commit import commit_json, committing, sha256
from dualflow.errors import CheckpointError, CommitError

WEIGHTS, CARD = "model.safetensors", "model.json"
_FACTS = "facts"


def save_model(folder: Path, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> list[Path]:
    """Write a model folder; return its files."""
    _save(folder / WEIGHTS, weights, None)
    commit_json(folder / CARD, {**card, "weights_sha256": sha256(folder / WEIGHTS)})
    return [folder / WEIGHTS, folder / CARD]


def load_card(folder: Path) -> dict[str, Any]:
    """Read a model's card.

    Raises:
        CheckpointError: there is none, or it is not a JSON object.
    """
    try:
        card: Any = json.loads((folder / CARD).read_text())
    except OSError as error:
        raise CheckpointError(f"{folder}: no {CARD} ({error.strerror}); name the folder of a trained model") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CARD}: is not JSON; train the model again") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{folder / CARD}: holds {type(card).__name__}, not a card; train the model again")
    return card


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read a model's weights after checking them against its card.

    Raises:
        CheckpointError: they are missing, broken, or not the ones the card describes.
    """
    expected = load_card(folder).get("weights_sha256")
    path = folder / WEIGHTS
    if not path.is_file() or sha256(path) != expected:
        raise CheckpointError(f"{path}: does not match the hash in {CARD}; copy the folder again, or train again")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error}); train again") from error
    return weights


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int = 2) -> None:
    """Write the training state of `step` and drop all but the `keep` newest.

    Raises:
        CommitError: the disk refused it; the states that are there stay.
    """
    _save(folder / f"state-{step:08d}.safetensors", tensors, {_FACTS: json.dumps(facts)})
    for old in states(folder)[:-keep]:
        old.unlink()


def load_newest_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest training state that is whole, or None; a broken one falls back to the one before."""
    for path in reversed(states(folder)):
        try:
            with safe_open(path, framework="pt") as stream:
                facts = json.loads(stream.metadata()[_FACTS])
                return {key: stream.get_tensor(key) for key in stream.keys()}, facts  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path}: broken training state left aside ({error}); going back to the one before")
    return None


def states(folder: Path) -> list[Path]:
    """Training states in `folder`, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def forget_states(folder: Path) -> None:
    """Remove the training states in `folder`."""
    for state in states(folder):
        state.unlink()


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    whole, known = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu").contiguous()
        # Tied or sliced tensors share storage, which the format refuses; a copy of all would take as much again.
        if own.untyped_storage().nbytes() > own.nbytes or own.data_ptr() in known:
            own = own.clone()
        known.add(own.data_ptr())
        whole[name] = own
    try:
        with committing(path) as temp:
            save_file(whole, temp, metadata)
    except SafetensorError as error:  # of the library's own writing, as when the disk is full
        raise CommitError(f"{path}: cannot be written ({error}); free space or change the output folder") from error
