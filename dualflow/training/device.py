"""Device selection, and the precision of convolutions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dualflow.config import Device
from dualflow.errors import ConfigError


def select_device(choice: str, setting: str = "train.device") -> torch.device:
    """Return the device of this process: `cpu`, `cuda`, or with `auto` a GPU if there is one.

    Each process gets its own GPU, by the local rank that torchrun sets. On a GPU, float32 means IEEE float32: the TF32
    format, torch's default for convolutions, keeps 10 bits of the mantissa, and an inverse amplifies its errors.

    Args:
        choice: `auto`, `cpu` or `cuda`.
        setting: name of the setting, for the error.

    Raises:
        ConfigError: the choice is none of these, or there are fewer GPUs than processes.
    """
    if choice not in get_args(Device):
        raise ConfigError(f"{setting} = {choice}: expected one of {', '.join(get_args(Device))}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if choice == "cpu" or (choice == "auto" and not gpus):
        return torch.device("cpu")
    if local_rank >= gpus:
        raise ConfigError(
            f"{setting} = {choice}: process {local_rank + 1} needs a GPU of its own and torch {torch.__version__} "
            f"finds {gpus}; {'set train.processes to the number of GPUs, or ' if local_rank else ''}choose cpu"
        )
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", local_rank)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's tensors; the CPU for a model without any."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def source_and_side(item: Mapping[str, Any], model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a scan's source and side values as a batch of one, on the model's device."""
    device = device_of(model)
    return item["source"][None].to(device), item["side"][None].to(device)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work, before a clock is read; a CPU never lags behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def chosen_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; for `auto` the latter on GPUs that have it and on processors with AVX-512."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "bfloat16" if native else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Run convolutions in bfloat16 inside the block if that is the chosen precision; log-determinants stay float32."""
    if chosen_precision(precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
