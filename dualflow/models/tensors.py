"""Named tensors in a safetensors file, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dualflow.commit import committing
from dualflow.errors import CommitError


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
