"""How much memory a training holds, found by following one step through tensors that have sizes but no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dualflow.config import Config
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.memory import without_drift_check
from dualflow.flows.model import INITIALISATION_VOXELS
from dualflow.training.device import autocast
from dualflow.training.fit_mean import FOLDS
from dualflow.training.step_time import random_batch, untrained
from dualflow.training.train_flow import INITIALISATION_SCANS

BYTES_PER_VOXEL = 13
"""Of a scan in memory: source, target and cross-fitted mean, 4 bytes each, and the mask; a further source has 4."""
COPIES, SHARED = 5, 1
"""Of each trained number: weight, running mean, the best so far, and two moments of Adam, while gradients come and go.
Processes that share a batch hold one more, to add gradients up in."""
FITTED = 3
"""Of each number of a fitted mean: in the model, in its running mean and in the best so far."""
BRAIN = 0.25
"""Share of the grid that the union of the training masks takes."""
SOLVING = 3.3
"""What the least squares hold at most, over their sums alone (measured at 4 mm)."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that one process of a training holds.

    Attributes:
        parameters: how many numbers are trained.
        scans: the study's volumes.
        model: the model alone.
        weights: what is held of it between steps: the model, its running mean, the best so far, Adam's moments.
        step: the most that a step adds.
        mean: the most that the closed-form fit of the mean holds, before the flow is there.
        start: the most that initialisation adds to the model alone, its scans included.
    """

    parameters: int
    scans: int
    model: int
    weights: int
    step: int
    mean: int
    start: int

    @property
    def peak(self) -> int:
        """The most of all, on a CPU: phases come one after the other."""
        return self.scans + max(self.mean, self.on_device)

    @property
    def on_device(self) -> int:
        """The most that a GPU holds of it: scans and the closed-form fit stay with the CPU."""
        return max(self.weights + self.step, self.model + self.start)


def footprint(config: Config, scans: int) -> Footprint:
    """What one process of a training of the configuration's flow will hold, on `scans` scans in its share of the batch.

    Nothing is allocated: each operation is asked for its sizes alone (FakeTensorMode).
    """
    share = config.train.batch_size // config.train.processes
    voxels = prod(config.preprocess.shape)
    scan = (BYTES_PER_VOXEL + 4 * (len(config.study.sources) - 1)) * voxels
    with FakeTensorMode(), without_drift_check():
        model = untrained(config, config.model)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fitted = _bytes([*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)])
        step = _most(model, random_batch(config, model, share), partial(_step, config))
        some = max(1, min(INITIALISATION_VOXELS // voxels, INITIALISATION_SCANS, scans))
        start = _most(model, random_batch(config, model, some), _start)
        # All its scans are there at once, and once more with noise.
        start += 2 * min(INITIALISATION_SCANS, scans) * scan
    mean = 0
    if isinstance(model.mean_model, LocalLinear):
        count = model.mean_model.count
        mean = int(SOLVING * FOLDS * (count * (count + 1) // 2 + count + 1) * BRAIN * voxels * 4)
    return Footprint(
        parameters=sum(parameter.numel() for parameter in trained),
        scans=scans * scan,
        model=_bytes(trained) + fitted,
        weights=(COPIES + SHARED * (config.train.processes > 1)) * _bytes(trained) + FITTED * fitted,
        step=step,
        mean=mean,
        start=start,
    )


def _step(config: Config, model: nn.Module, batch: dict[str, Tensor]) -> None:
    with autocast(config.train.precision, batch["source"].device):
        loss: Tensor = model(**batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _start(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(**batch)  # as initialisation does, but for a flag in it that has no number here


def _most(model: nn.Module, batch: dict[str, Tensor], action: Callable[[nn.Module, dict[str, Tensor]], None]) -> int:
    """The most bytes that `action` holds at once beside the model and the batch."""
    with _counting([*model.parameters(), *model.buffers(), *batch.values()]) as alive:
        action(model, batch)
    for parameter in model.parameters():
        parameter.grad = None
    return alive.most


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: WeakKeyDictionary[UntypedStorage, int] = WeakKeyDictionary()

    def know(self, tensor: Tensor, size: int) -> None:
        """Count `size` bytes for the tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known[storage] = size
        self.now += size
        self.most = max(self.most, self.now)
        finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do the operation and count what is new."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.know(leaf, leaf.untyped_storage().nbytes())
        return out


@contextmanager
def _counting(there: Iterable[Tensor]) -> Iterator[_Alive]:
    alive = _Alive()
    for tensor in there:
        alive.know(tensor, 0)
    with alive:
        yield alive


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
