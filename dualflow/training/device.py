"""Where a model lives, and the number format of its convolutions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dualflow.errors import ConfigError


def chosen_device(choice: str) -> torch.device:
    """The device of this process: `cpu`, `cuda`, or with `auto` a GPU where there is one.

    Of several processes on one machine, which torchrun numbers, each gets a GPU of its own.

    Raises:
        ConfigError: there are fewer GPUs than were asked for.
    """
    found, place = torch.cuda.device_count() if torch.cuda.is_available() else 0, int(os.environ.get("LOCAL_RANK", "0"))
    if choice == "cpu" or (choice == "auto" and not found):
        return torch.device("cpu")
    if place >= found:
        raise ConfigError(
            f"train.device = {choice}: {place + 1} GPUs were asked for and torch {torch.__version__} finds {found}; "
            "set train.processes to the number of GPUs, or train.device: cpu"
        )
    return torch.device("cuda", place)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's tensors; the CPU for one without any."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def source_and_side(item: Mapping[str, Any], model: nn.Module) -> tuple[Tensor, Tensor]:
    """A scan's source and side values as a batch of one, where the model lives."""
    device = device_of(model)
    return item["source"][None].to(device), item["side"][None].to(device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Run convolutions in bfloat16 if `precision` says so; log-determinants and solves look after themselves."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
