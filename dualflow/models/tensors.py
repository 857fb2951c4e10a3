"""Named tensors in a safetensors file: written atomically, and read only if they are those that a model expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualflow.commit import committing
from dualflow.errors import CheckpointError, CommitError

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
            save_file(contiguous, temp, metadata)
    except SafetensorError as error:  # safetensors writes the file itself, and fails on a full disk
        raise CommitError(f"{path}: cannot be written ({error}); free space or change the output folder") from error


def read_shapes(path: Path) -> Shapes:
    """Shapes of the tensors of a file by name; only its header is read.

    Raises:
        CheckpointError: the file is not a safetensors file.
    """
    with _readable(path), safe_open(path, framework="pt") as stream:
        return {name: tuple(stream.get_slice(name).get_shape()) for name in sorted(stream.keys())}


def check_shapes(path: Path, shapes: Shapes, expected: Mapping[str, Tensor]) -> None:
    """Compare the shapes of a file with the tensors that a model has, which may lie on the meta device.

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
