"""Where a model lives, and the number format of its convolutions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's tensors; the CPU for one without any."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Run convolutions in bfloat16 if `precision` says so; log-determinants and solves look after themselves."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
