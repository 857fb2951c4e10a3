"""Named tensors in a safetensors file: written atomically with a digest, and read only if they are those expected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualflow.commit import committing
from dualflow.errors import CheckpointError, CommitError

_DIGEST = "sha256"
Shapes = dict[str, tuple[int, ...]]


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


def read_verified(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def read_shapes(path: Path) -> Shapes:
    """Shapes of the tensors of a file by name; only its header is read.

    Raises:
        CheckpointError: the file is not a safetensors file.
    """
    with _readable(path), safe_open(path, framework="pt") as stream:
        return {name: tuple(stream.get_slice(name).get_shape()) for name in sorted(stream.keys())}


def check_shapes(path: Path, shapes: Shapes, expected: Mapping[str, Tensor]) -> None:
    """Compare the shapes of a file with the tensors that a model has.

    Raises:
        CheckpointError: a tensor is missing, or surplus, or has another shape.
    """
    for name in sorted(shapes.keys() | expected.keys()):
        actual, shape = shapes.get(name), tuple(expected[name].shape) if name in expected else None
        if actual != shape:
            raise CheckpointError(
                f"{path}: card and weights do not fit this version (tensor '{name}' is {_shape_text(actual)}, expected "
                f"{_shape_text(shape)}); train again"
            )


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load a file that passed `check_shapes`; no tensor is cast.

    Raises:
        CheckpointError: a tensor has another dtype than expected, or holds NaN or infinite values.
    """
    with _readable(path):
        tensors: dict[str, Tensor] = load_file(path)
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{path}: tensor '{name}' is {tensor.dtype}, expected {expected[name].dtype}; train again"
            )
    check_finite(path, tensors)
    return tensors


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that no number is NaN or infinite.

    Raises:
        CheckpointError: one is.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor '{name}' holds NaN or infinite values; copy the model again")


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error}); train again") from error
