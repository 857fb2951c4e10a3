"""A training at work: model, optimiser, history and best weights, and how a state keeps and brings them back."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualflow.config import TrainConfig
from dualflow.data.dataset import Item, PairDataset
from dualflow.errors import CommitError, DualflowError
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import selection
from dualflow.flows.rng import batch_shard
from dualflow.training.checkpoint import forget_states, load_newest_state, save_state
from dualflow.training.device import autocast
from dualflow.training.distributed import Ranks
from dualflow.training.optimiser import Optimiser
from dualflow.training.validation import validate

INPUTS = ("target", "source", "side", "mask", "mean")


@dataclass
class History:
    """What happened in training: one entry per validation, and the totals.

    Attributes:
        entries: step, learning rate, gradient norm, training terms and `validation/` terms.
        best: lowest validation loss so far.
        best_step: the step it was reached at.
        skipped: steps whose loss or gradient was not finite, which changed nothing.
        seconds: time spent in optimiser steps, over all resumptions.
    """

    entries: list[dict[str, float]] = field(default_factory=list)
    best: float = float("inf")
    best_step: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Session:
    """One training in one process, step by step; arguments are those of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        steps: int,
        learning_rate: float,
        ranks: Ranks,
        folder: Path,
        label: str,
        identity: str,
    ) -> None:
        self.model, self.config, self.steps, self.learning_rate = model, config, steps, learning_rate
        self.ranks, self.folder, self.label, self.identity = ranks, folder, label, identity
        self.optimiser = Optimiser(model, config, steps, learning_rate)
        self.shared: nn.Module = model if ranks.count == 1 else _distributed(model)
        self.history, self.in_a_row, self.best = History(), 0, _copy(model)
        self.sums: dict[str, list[float]] = {}
        self.paced = (0, 0.0)

    def exhausted(self, step: int) -> bool:
        """Whether no validation has been better for as long as patience lasts."""
        patience, since = self.config.patience, step - self.history.best_step
        return patience is not None and self.history.best_step > 0 and since >= patience * self.config.validate_every

    def pace(self) -> float:
        """Samples per second of the steps since it was last asked for."""
        (steps, seconds), self.paced = self.paced, (0, 0.0)
        return steps * self.config.batch_size / seconds if seconds else 0.0

    def resume(self) -> int:
        """Take up the newest whole state of this very training; return the step it is of, 0 if there is none."""
        found = load_newest_state(self.folder)
        if found is not None and found[1].get("identity") != self.identity:
            self.ranks.wait()  # all have looked
            if self.ranks.first:
                forget_states(self.folder)
            found = None
        if found is None:
            return 0
        tensors, facts = found
        self.in_a_row, self.sums = int(facts["in_a_row"]), facts["sums"]
        self.optimiser.load(tensors, int(facts["step"]))
        torch.set_rng_state(tensors["rng"])
        self.history = History(**facts["history"])
        self.best = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
        return int(facts["step"])

    def save(self, step: int) -> None:
        """Keep a state that the training can go on from as if it had never stopped."""
        if self.ranks.first:
            tensors = self.optimiser.tensors() | {f"best.{key}": value for key, value in self.best.items()}
            facts = {
                "step": step,
                "in_a_row": self.in_a_row,
                "sums": self.sums,
                "identity": self.identity,
                "history": vars(self.history),
            }
            try:
                save_state(self.folder, step, tensors | {"rng": torch.get_rng_state()}, facts)
            except CommitError as error:  # such as a full disk: hours of training are worth more than this state
                print(f"warning: {self.label}: no state of step {step}, the one before stays: {error}", file=sys.stderr)
        self.ranks.wait()

    def step(self, step: int, batch: Item) -> float:
        """One optimiser step on this process's rows of a batch; return their loss.

        Raises:
            DualflowError: too many steps in a row were not finite.
        """
        self.model.train()
        if isinstance(self.model, DualFlow):
            self.model.set_progress((step - 1) / self.steps)
        begun = time.perf_counter()
        with autocast(self.config.precision, self.ranks.device), batch_shard(self.ranks.rank, self.ranks.count):
            terms = self.shared(**to_inputs(batch, self.ranks.device))
        norm = self.optimiser.step(terms["loss"], self.ranks)
        seconds = time.perf_counter() - begun
        self.history.seconds += seconds
        self.paced = (self.paced[0] + 1, self.paced[1] + seconds)
        if norm is None:
            self.history.skipped, self.in_a_row = self.history.skipped + 1, self.in_a_row + 1
            if self.in_a_row > self.config.max_skipped:
                raise DualflowError(
                    f"{self.label}: {self.in_a_row} steps in a row were not finite, the last at step {step}; lower its "
                    f"learning rate (now {self.learning_rate:g}) or use train.precision: float32"
                )
        else:
            self.in_a_row = 0
            values = {name: float(term.detach()) for name, term in terms.items()} | {"gradient_norm": norm}
            for name, value in values.items():
                self.sums.setdefault(name, []).append(value)
        return float(terms["loss"].detach())

    def validated(self, step: int, validation: PairDataset) -> dict[str, float]:
        """Close the books since the last validation, validate, and keep the weights if they are the best so far.

        Raises:
            DualflowError: the round trip drifted beyond `max_round_trip`.
        """
        entry = {"step": float(step), "learning_rate": float(self.optimiser.schedule.get_last_lr()[0])}
        means = self.ranks.sums({name: sum(values) / len(values) for name, values in self.sums.items()})
        entry |= {name: value / self.ranks.count for name, value in means.items()}
        self.sums = {}
        if len(validation):
            terms = validate(self.optimiser.averaged, validation, self.config.batch_size, self.ranks)
            entry |= {f"validation/{name}": value for name, value in terms.items()}
            _check_round_trip(self.label, step, terms, self.config.max_round_trip)
        self.history.entries.append(entry)
        loss = _selection(self.model, entry)
        if loss <= self.history.best:
            self.history.best, self.history.best_step = loss, step
            self.best = _copy(self.optimiser.averaged)
        return entry


def _distributed(model: nn.Module) -> nn.Module:
    """The model with its gradients averaged over the processes as they are made; buffers are the same anyway."""
    # A flow uses all it has in every step, unless its source is frozen for a part of the training.
    partly = not isinstance(model, DualFlow) or model.spec.source_frozen > 0
    # What later releases of torch call it.
    known = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if known else "broadcast_buffers": False}
    return DistributedDataParallel(model, find_unused_parameters=partly, **buffers)


def _selection(model: nn.Module, entry: Mapping[str, float]) -> float:
    """What weights are chosen by, the lower the better; the last ones where there was no validation."""
    found = {key.removeprefix("validation/"): value for key, value in entry.items() if key.startswith("validation/")}
    if not found:
        return float("-inf")
    return selection(model, found) if isinstance(model, DualFlow) else found["loss"]


def _check_round_trip(label: str, step: int, terms: Mapping[str, float], bound: float) -> None:
    """Stop when decoding no longer undoes encoding: neither samples nor likelihoods could be believed."""
    error = terms.get("round_trip", 0.0)
    if not error <= bound:  # also if it is not a number
        raise DualflowError(
            f"{label}: at step {step} a decoded scan differs from the encoded one by {error:g}, more than "
            f"train.max_round_trip = {bound:g}; lower train.learning_rate or the flow's log_scale_bound"
        )


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def to_inputs(batch: Item, device: torch.device) -> dict[str, Tensor]:
    """The model's inputs of a batch, on its device."""
    return {name: batch[name].to(device, non_blocking=True) for name in INPUTS if name in batch}
