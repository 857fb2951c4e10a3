"""Memory of a training, from the sizes of the tensors of one step; nothing is allocated (FakeTensorMode)."""

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
from dualflow.data.dataset import PairDataset
from dualflow.flows.field_whitening import AT_ONCE, LATTICES, NEIGHBOURS, PARITIES, REMEMBERED
from dualflow.flows.folds import FOLDS
from dualflow.flows.initialization import INITIALISATION_VOXELS
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.memory import without_drift_check
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.spread_map import VoxelSpread
from dualflow.imaging.regions import region_map
from dualflow.training.device import autocast
from dualflow.training.fit_base import GRADIENT_PEOPLE, blocks_per_axis, decoded_at_once, mean_gradients
from dualflow.training.step_time import random_batch, untrained
from dualflow.training.train_flow import INITIALISATION_SCANS

BYTES_PER_VOXEL = 17
"""A scan in memory: source, its detail, target and cross-fitted mean of 4 bytes each, and the mask; each extra source
adds 8, and a spread map adds 4: one that follows the source is of each scan."""
COPIES, SHARED = 5, 1
"""Copies of each trained parameter: weight, weight average, best weights, and two moments of Adam; gradients belong to
the step. Processes that share a batch hold one more copy to reduce gradients."""
FITTED = 3
"""Copies of each fixed parameter of a fitted mean: model, weight average and best weights."""
BRAIN = 0.25
"""Share of the grid that the union of the training masks covers."""
STACKED = 30
"""Bytes per voxel and scan that the fit of a stacked mean adds: harmonised source and detail, abnormality, both
predictions."""
SOLVING = 3.3
"""Peak memory of the least-squares fit relative to its sums (measured at 4 mm)."""
CONDITION = 16
"""Bytes per voxel of a scan's condition: target, mean, scale and mask; a whitening adds a number for each neighbour."""
GRADIENTS = 5
"""Copies of the gradients of all region means while directions are fitted: weights, gradients and their graph, basis.
At 4 mm the measured peak is 0.9 of what this forecasts."""
EDGE, SOLVED_SET = 0.02, 25_000
"""Share of a scan's voxels at the edge of the brain for whose neighbours a whitening keeps weights of their own
(measured at 4 mm); bytes with which it solves for each."""


@dataclass(frozen=True)
class Footprint:
    """Memory of one training process, in bytes.

    Attributes:
        parameters: number of trained parameters.
        scans: volumes of the study.
        model: model alone.
        weights: model, weight average, best weights and Adam's moments, held between steps.
        step: peak that a step adds.
        mean: peak of the closed-form fit of the mean, before the flow exists.
        start: peak that the initialisation adds to the model, including its scans.
        end: peak that the fit of the base's directions adds to the model, after the last step.
        whitening: weights that a whitening keeps, and what it needs to solve for them.
    """

    parameters: int
    scans: int
    model: int
    weights: int
    step: int
    mean: int
    start: int
    end: int
    whitening: int

    @property
    def peak(self) -> int:
        """Peak on a CPU, where fits, initialisation and steps follow each other."""
        return self.scans + max(self.mean, self.on_device)

    @property
    def on_device(self) -> int:
        """Peak on a GPU; scans and the closed-form fit stay in CPU memory."""
        return self.whitening + max(self.weights + self.step, self.model + max(self.start, self.end))


def footprint(config: Config, scans: int) -> Footprint:
    """Memory of one training process of the configuration's flow, with its share of the batch and `scans` scans."""
    share = config.train.batch_size // config.train.processes
    voxels = prod(config.preprocess.shape)
    with FakeTensorMode(), without_drift_check():
        model = untrained(config, config.model)
        more = 2 * (len(config.study.sources) - 1) + isinstance(model.flow.spread, VoxelSpread)
        scan = (BYTES_PER_VOXEL + 4 * more) * voxels
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fitted = _bytes([*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)])
        step = _peak_bytes(model, Batch(**random_batch(config, model.flow, share)), partial(_step, config))
        count = max(1, min(INITIALISATION_VOXELS // voxels, INITIALISATION_SCANS, scans))
        start = _peak_bytes(model, Batch(**random_batch(config, model.flow, count)), _initialise)
        # Its scans are in memory twice, the second time with noise.
        start += 2 * min(INITIALISATION_SCANS, scans) * scan
        end = _directions(config, model.flow.eval(), len(region_map(config.preprocess).names))
    mean = 0
    # A stacked mean holds two regressions, fitted one after the other.
    if counts := [part.count for part in model.flow.mean_model.modules() if isinstance(part, LocalLinear)]:
        features = max(counts)
        mean = int(SOLVING * FOLDS * (features * (features + 1) // 2 + features + 1) * BRAIN * voxels * 4)
        mean += STACKED * scans * voxels * (len(counts) > 1)
    return Footprint(
        parameters=sum(parameter.numel() for parameter in trained),
        scans=scans * scan,
        model=_bytes(trained) + fitted,
        weights=(COPIES + SHARED * (config.train.processes > 1)) * _bytes(trained) + FITTED * fitted,
        step=step,
        mean=mean,
        start=start,
        end=end,
        whitening=_whitening(model.flow, scans),
    )


def _directions(config: Config, flow: DualFlow, regions: int) -> int:
    """Memory of the fit of the base's directions in bytes: gradients of all means and the conditions of some scans.

    In a large flow, the activations of the scans that are decoded at once need more than a basis of the gradients.
    """
    if flow.base is None:
        return 0
    voxels = prod(flow.shape)
    means = 4 * voxels * (prod(blocks_per_axis(flow.shape, 2**flow.spec.levels)) + regions)
    condition = voxels * (CONDITION + (flow.whitening is not None) * 4 * (NEIGHBOURS + 1))
    some = Batch(**random_batch(config, flow, decoded_at_once(flow)))
    decoding = _peak_bytes(flow, some, partial(_one_gradient, config))
    return GRADIENT_PEOPLE * condition + max(GRADIENTS * means, 2 * means + decoding)


def _one_gradient(config: Config, flow: nn.Module, batch: Batch) -> None:
    """Compute the gradient of one mean as the fit of the directions does; each further one needs no more memory."""
    assert isinstance(flow, DualFlow)
    volumes = {name: tensor for name, tensor in batch._asdict().items() if tensor is not None}
    pairs = PairDataset([{name: part[index] for name, part in volumes.items()} for index in range(len(batch.target))])
    mean_gradients(flow, pairs, batch.target.new_ones(1, *flow.shape), precision=config.train.precision)


def _whitening(flow: DualFlow, scans: int) -> int:
    """Memory of a flow's whitening in bytes: each set of neighbours has a key, weights and a scale."""
    if flow.whitening is None:
        return 0
    sets = int(EDGE * prod(flow.shape))
    kept = min(sets * scans, LATTICES * len(PARITIES) * REMEMBERED)
    return min(sets, AT_ONCE) * SOLVED_SET + kept * (8 + 4 * (NEIGHBOURS + 1))


def _step(config: Config, model: nn.Module, batch: Batch) -> None:
    with autocast(config.train.precision, batch.source.device):
        loss: Tensor = model(batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _initialise(model: nn.Module, batch: Batch) -> None:
    model(batch)  # initialisation without its flag, which has no value in fake tensors


def _peak_bytes(model: nn.Module, batch: Batch, action: Callable[[nn.Module, Batch], None]) -> int:
    """Peak memory of `action` in bytes, excluding the model and the batch."""
    given = [tensor for tensor in batch if tensor is not None]
    with _count_live_bytes([*model.parameters(), *model.buffers(), *given]) as live:
        action(model, batch)
    for parameter in model.parameters():
        parameter.grad = None
    return live.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations create, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self.sizes: WeakKeyDictionary[UntypedStorage, int] = WeakKeyDictionary()

    def add(self, tensor: Tensor, size: int) -> None:
        """Count `size` bytes for the tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        if storage in self.sizes:
            return
        self.sizes[storage] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.current -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count its new storages."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf, leaf.untyped_storage().nbytes())
        return out


@contextmanager
def _count_live_bytes(excluded: Iterable[Tensor]) -> Iterator[_LiveBytes]:
    live = _LiveBytes()
    for tensor in excluded:
        live.add(tensor, 0)
    with live:
        yield live


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
