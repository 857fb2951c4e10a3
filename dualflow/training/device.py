"""Device selection, and the precision of convolutions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dualflow.errors import ConfigError


def select_device(choice: str) -> torch.device:
    """Return the device of this process: `cpu`, `cuda`, or with `auto` a GPU if there is one.

    Each process gets its own GPU, by the local rank that torchrun sets.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if choice == "cpu" or (choice == "auto" and not gpus):
        return torch.device("cpu")
    if local_rank >= gpus:
        raise ConfigError(
            f"train.device = {choice}: {local_rank + 1} GPUs are needed and torch {torch.__version__} finds {gpus}; "
            "set train.processes to the number of GPUs, or train.device: cpu"
        )
    return torch.device("cuda", local_rank)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's tensors; the CPU for a model without any."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def source_and_side(item: Mapping[str, Any], model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a scan's source and side values as a batch of one, on the model's device."""
    device = device_of(model)
    return item["source"][None].to(device), item["side"][None].to(device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Run convolutions in bfloat16 inside the block if `precision` asks for it; log-determinants stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
