"""Named tensors in a safetensors file, written atomically, with a digest in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dualflow.commit import committing
from dualflow.errors import CheckpointError, CommitError

_DIGEST = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors, with metadata in the header.

    Raises:
        CommitError: the file cannot be written.
    """
    contiguous, pointers = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        # The format refuses tied or sliced tensors, which share storage; copying all would double the memory.
        if value.untyped_storage().nbytes() > value.nbytes or value.data_ptr() in pointers:
            value = value.clone()
        pointers.add(value.data_ptr())
        contiguous[name] = value
    try:
        with committing(path) as temp:
            save_file(contiguous, temp, (metadata or {}) | {_DIGEST: _digest(contiguous, metadata or {})})
    except SafetensorError as error:  # safetensors writes the file itself, and fails on a full disk
        raise CommitError(f"{path}: cannot be written ({error}); free space or change the output folder") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a file that `save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing or damaged; a single flipped bit is noticed.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in sorted(stream.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove the file") from error
    if metadata.pop(_DIGEST, "") != _digest(tensors, metadata):
        raise CheckpointError(f"{path}: its content does not match its digest; remove the file")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
