"""The training loop of every objective: flows, their sources, and baseline networks."""

from __future__ import annotations

import sys
import time
from inspect import signature
from math import ceil
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dualflow.data.augment import Augment
from dualflow.data.dataset import Item, PairDataset, batches
from dualflow.errors import CommitError, DualflowError, StoppedError
from dualflow.flows.memory import set_memory
from dualflow.flows.objective import Batch, Objective
from dualflow.flows.rng import batch_shard
from dualflow.process import keep_freed_memory
from dualflow.progress import progress
from dualflow.training.checkpoint import load_newest_state, remove_states, save_state
from dualflow.training.context import CURVE_POINTS, TrainingContext
from dualflow.training.device import autocast, chosen_precision
from dualflow.training.distributed import StopRequest
from dualflow.training.history import History
from dualflow.training.optimiser import Optimiser
from dualflow.training.validation import validate

STATE_FORMAT = 2
"""Raised when earlier states can no longer be resumed, or would continue another training."""


class Trainer:
    """The training loop of one objective; every process of a training runs one.

    The main process writes a state at every validation. An interrupted training resumes from the newest intact state
    bit for bit. SIGTERM ends the training after the current step, with a state of that step. Call `forget_states` once
    the model is saved.

    Args:
        objective: already initialised; trained in place.
        train: pairs to learn from.
        validation: pairs to select the weights on; if empty, the last weights are selected.
        context: configuration, folder, seed, processes.
        steps: optimiser steps.
        learning_rate: peak learning rate.
        keep_start: whether the initial weights are validated too, and kept if no later ones are better.
        frozen: share of the steps in which a part is frozen; patience counts from its release at the earliest.
    """

    def __init__(
        self,
        objective: Objective,
        train: PairDataset,
        validation: PairDataset,
        context: TrainingContext,
        *,
        steps: int,
        learning_rate: float,
        keep_start: bool = False,
        frozen: float = 0.0,
    ) -> None:
        keep_freed_memory()
        self.context, self.config, self.group = context, context.config, context.group
        self.objective, self.train, self.validation = objective, train, validation
        self.steps, self.learning_rate, self.keep_start = steps, learning_rate, keep_start
        self.release = ceil(frozen * steps)
        set_memory(objective.to(self.group.device), self.config.memory)
        torch.manual_seed(context.seed)
        self.optimiser = Optimiser(objective, self.config, steps, learning_rate)
        self.distributed: nn.Module = _distributed(objective) if distributed.is_initialized() else objective
        self.history, self.skipped_in_a_row, self.best = History(), 0, _copy(objective)
        self.term_values: dict[str, list[float]] = {}
        self.timed_steps, self.timed_seconds = 0, 0.0

    def fit(self) -> History:
        """Train, and load the averaged weights of the best validation into the objective; return the history.

        Raises:
            StoppedError: SIGTERM ended the training early.
            ConfigError: the processes cannot share the batch evenly.
            DualflowError: more than `max_skipped` steps in a row were not finite, or the round trip drifted beyond
                `max_round_trip`.
        """
        context, config, start = self.context, self.config, self._resume()
        # An uninterrupted training asks at validations alone.
        is_validated = start % config.validate_every == 0
        last = start if is_validated and self._patience_exhausted(start) else self.steps
        rows = self.group.rows(config.batch_size)
        stream = batches(self.train, config.batch_size, last, context.seed, start, rows, Augment(config.augment))
        # The main process shows the progress of all.
        display = progress(context.label, self.steps, visible=self.group.is_main)
        stop = StopRequest()
        with stop.listening(), display as bar:
            bar.advance(start)
            if self.keep_start and start == 0:
                self.validate(0)
            for step, batch in enumerate(stream, start + 1):
                loss = self.train_step(step, batch)
                bar.advance(note=f"loss {loss:.3f}")
                if step % config.validate_every == 0 or step == self.steps:
                    self.validate(step)
                    self._save(step)
                    if self._patience_exhausted(step):
                        bar.advance(self.steps - step, f"no better than step {self.history.best_step}")
                        break
                if not self.group.all_agree(not stop.requested) and step < self.steps:
                    self._save(step)
                    raise StoppedError(f"{context.label}: stopped by SIGTERM after step {step}; run it again to resume")
        if self.history.best == float("inf"):
            raise DualflowError(
                f"{context.label}: no validation loss was finite, so no weights can be selected; lower its learning "
                f"rate (now {self.learning_rate:g}) or use train.precision: float32"
            )
        self.objective.load_state_dict(self.best)
        return self.history

    def train_step(self, step: int, batch: Item) -> float:
        """Take one optimiser step on this process's rows of a batch; return their loss.

        Raises:
            DualflowError: too many steps in a row were not finite.
        """
        self.objective.train()
        self.objective.set_progress((step - 1) / self.steps)
        begin, learning_rate = time.perf_counter(), float(self.optimiser.schedule.get_last_lr()[0])
        with (
            autocast(self.config.precision, self.group.device),
            batch_shard(self.group.rank, self.group.world_size),
        ):
            terms = self.distributed(to_batch(batch, self.group.device))
        norm = self.optimiser.step(terms["loss"], self.group)
        seconds = time.perf_counter() - begin
        self.history.seconds += seconds
        self.timed_steps, self.timed_seconds = self.timed_steps + 1, self.timed_seconds + seconds
        if norm is None:
            self._count_skipped(step)
        else:
            self.skipped_in_a_row = 0
            values = {name: float(term.detach()) for name, term in terms.items()} | {"gradient_norm": norm}
            for name, value in values.items():
                self.term_values.setdefault(name, []).append(value)
            # Values of single steps: means since the last point would depend on where a resumed training began.
            if self.context.log is not None and self.group.is_main and step % max(1, self.steps // CURVE_POINTS) == 0:
                self.context.log(step, values | {"learning_rate": learning_rate})
        return float(terms["loss"].detach())

    def validate(self, step: int) -> None:
        """Average the training terms since the last validation, validate, and keep the weights if they are the best.

        Raises:
            DualflowError: the round trip drifted beyond `max_round_trip`.
        """
        entry = {"step": float(step), "learning_rate": float(self.optimiser.schedule.get_last_lr()[0])}
        means = self.group.sums({name: sum(values) / len(values) for name, values in self.term_values.items()})
        entry |= {name: value / self.group.world_size for name, value in means.items()}
        self.term_values = {}
        score = float("-inf")  # without validation the last weights are the best
        if len(self.validation):
            terms = validate(self.optimiser.averaged, self.validation, self.config.batch_size, self.group)
            score = self.objective.selection_score(terms)
            entry |= {f"validation/{name}": value for name, value in (terms | {"score": score}).items()}
            self._check_round_trip(step, terms.get("round_trip", 0.0))
        self.history.entries.append(entry)
        if score <= self.history.best:
            self.history.best, self.history.best_step = score, step
            self.best = _copy(self.optimiser.averaged)
        if self.context.watch is not None and self.group.is_main:
            speed = {"samples_per_second": self._samples_per_second()} if self.timed_steps else {}
            self.context.watch(step, entry | speed, self.optimiser.averaged)

    def _count_skipped(self, step: int) -> None:
        self.history.skipped, self.skipped_in_a_row = self.history.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row > self.config.max_skipped:
            raise DualflowError(
                f"{self.context.label}: {self.skipped_in_a_row} steps in a row were not finite, the last at step "
                f"{step}; lower its learning rate (now {self.learning_rate:g}) or use train.precision: float32"
            )

    def _check_round_trip(self, step: int, error: float) -> None:
        """Stop when decoding no longer inverts encoding: samples and likelihoods would be meaningless."""
        bound = self.config.max_round_trip
        if not error <= bound:  # also catches NaN
            raise DualflowError(
                f"{self.context.label}: at step {step} a decoded scan differs from the encoded one by {error:g}, more "
                f"than train.max_round_trip = {bound:g}; lower train.learning_rate or the flow's log_scale_bound"
            )

    def _patience_exhausted(self, step: int) -> bool:
        patience, since = self.config.patience, max(self.history.best_step, self.release)
        if patience is None or self.history.best == float("inf"):
            return False
        return step - since >= patience * self.config.validate_every

    def _samples_per_second(self) -> float:
        """Samples per second since the last call."""
        steps, seconds = self.timed_steps, self.timed_seconds
        self.timed_steps, self.timed_seconds = 0, 0.0
        return steps * self.config.batch_size / seconds if seconds else 0.0

    def _resume(self) -> int:
        """Load the newest intact state of this training; return its step, 0 if there is none."""
        state = load_newest_state(self.context.folder)
        if state is not None and any(state[1].get(key) != value for key, value in self._identity().items()):
            self.group.wait()  # until every process has read the state
            if self.group.is_main:
                print(
                    f"warning: {self.context.label}: the states in {self.context.folder} are removed, and it begins "
                    "at step 0: since they were written, its options, its data or the version of dualflow changed",
                    file=sys.stderr,
                )
                remove_states(self.context.folder)  # parts, such as the source, have removed theirs before they ran
            state = None
        if state is None:
            return 0
        tensors, facts = state
        if self.group.is_main and (earlier := facts.get("precision", self._precision)) != self._precision:
            print(
                f"warning: {self.context.label}: begun in {earlier}, continued in {self._precision}, which this device "
                f"computes in; set train.precision: {earlier} for the same result as without the interruption",
                file=sys.stderr,
            )
        self.skipped_in_a_row = int(facts["skipped_in_a_row"])
        # With more processes than before, some start with the terms of the same one.
        self.term_values = facts["term_values"][self.group.rank % len(facts["term_values"])]
        self.optimiser.load(tensors, int(facts["step"]))
        torch.set_rng_state(tensors["rng"])
        self.history = History(**facts["history"])
        self.best = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
        return int(facts["step"])

    def _identity(self) -> dict[str, str | int]:
        """Facts of a state by which a training recognises its own."""
        return {"format": STATE_FORMAT, "fingerprint": self.context.fingerprint}

    @property
    def _precision(self) -> str:
        return chosen_precision(self.config.precision, self.group.device)

    def _save(self, step: int) -> None:
        """Write a state from which the training resumes exactly."""
        term_values = self.group.gathered(self.term_values)
        if self.group.is_main:
            tensors = self.optimiser.tensors() | {f"best.{key}": value for key, value in self.best.items()}
            facts = {
                "step": step,
                "skipped_in_a_row": self.skipped_in_a_row,
                "term_values": term_values,
                "precision": self._precision,
                **self._identity(),
                "history": vars(self.history),
            }
            try:
                save_state(self.context.folder, step, tensors | {"rng": torch.get_rng_state()}, facts)
            except CommitError as error:  # a full disk costs this state, not hours of training
                print(
                    f"warning: {self.context.label}: the state of step {step} is not saved, the previous one remains: "
                    f"{error}",
                    file=sys.stderr,
                )
        self.group.wait()


def to_batch(items: Item, device: torch.device) -> Batch:
    """Return the batch of an objective from collated items, moved to a device."""
    return Batch(**{name: items[name].to(device, non_blocking=True) for name in Batch._fields if name in items})


def _distributed(objective: Objective) -> nn.Module:
    """Wrap the objective so that processes average its gradients; its buffers are equal without synchronisation."""
    # Later releases of torch rename this argument.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(objective, find_unused_parameters=not objective.uses_all_parameters, **buffers)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
