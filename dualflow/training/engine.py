"""The training loop, for anything whose forward returns a loss: the flow and the networks it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dualflow.config import TrainConfig
from dualflow.data.dataset import Item, PairDataset, batches
from dualflow.errors import DualflowError
from dualflow.flows.memory import set_memory
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import selection
from dualflow.progress import progress
from dualflow.training.checkpoint import load_newest_state, save_state, states
from dualflow.training.optimiser import Optimiser
from dualflow.training.precision import autocast, device_of
from dualflow.training.validation import validate

INPUTS = ("target", "source", "side", "mask", "mean")
Watcher = Callable[[int, Mapping[str, float], nn.Module | None], None]


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


def fit(
    model: nn.Module,
    train: PairDataset,
    validation: PairDataset,
    config: TrainConfig,
    *,
    label: str,
    steps: int,
    learning_rate: float,
    seed: int,
    folder: Path,
    identity: str = "",
    watch: Watcher | None = None,
) -> tuple[dict[str, Tensor], History]:
    """Train `model`; return the averaged weights of the best validation, and the history.

    A state is written to `folder` at every validation, and a run that was stopped goes on from the newest whole one
    as if it had never stopped. The states are removed by `forget_states` once the model itself is saved.

    Args:
        model: forward(target, source, side, mask[, mean]) -> dict with `loss`; already initialised.
        train: pairs to learn from.
        validation: pairs to choose the weights on; if empty, the last weights are taken.
        config: batch size, precision, and so on.
        label: what the progress display says.
        steps: optimiser steps.
        learning_rate: peak learning rate.
        seed: of the order of the scans and the noise.
        folder: where states go.
        identity: digest of everything else the training depends on: data, model, configuration. States of another
            identity are removed, for going on from them would mix two trainings.
        watch: called with step, metrics and averaged model at every validation, for tracking.

    Raises:
        DualflowError: `config.max_skipped` steps in a row were not finite, or the round trip drifted beyond
            `config.max_round_trip`.
    """
    device = device_of(model)
    set_memory(model, config.memory)
    torch.manual_seed(seed)
    optimiser = Optimiser(model, config, steps, learning_rate)
    history, start, in_a_row, best = History(), 0, 0, _copy(model)
    found = load_newest_state(folder)
    if found is not None and found[1].get("identity") != identity:
        forget_states(folder)
        found = None
    if found is not None:
        tensors, facts = found
        start, in_a_row = int(facts["step"]), int(facts["in_a_row"])
        optimiser.load(tensors, start)
        torch.set_rng_state(tensors["rng"])
        history = History(**facts["history"])
        best = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
    sums: dict[str, list[float]] = {}
    with progress(label, steps) as shown:
        shown.advance(start)
        for step, batch in enumerate(batches(train, config.batch_size, steps, seed, start), start + 1):
            model.train()
            if isinstance(model, DualFlow):
                model.set_progress((step - 1) / steps)
            begun = time.perf_counter()
            with autocast(config.precision, device):
                terms = model(**to_inputs(batch, device))
            norm = optimiser.step(terms["loss"])
            history.seconds += time.perf_counter() - begun
            if norm is None:
                history.skipped, in_a_row = history.skipped + 1, in_a_row + 1
                if in_a_row > config.max_skipped:
                    raise DualflowError(
                        f"{label}: {in_a_row} steps in a row were not finite, the last at step {step}; lower its "
                        f"learning rate (now {learning_rate:g}) or use train.precision: float32"
                    )
            else:
                in_a_row = 0
                values = {name: float(term.detach()) for name, term in terms.items()} | {"gradient_norm": norm}
                for name, value in values.items():
                    sums.setdefault(name, []).append(value)
            shown.advance(note=f"loss {float(terms['loss'].detach()):.3f}")
            if step % config.validate_every and step != steps:
                continue
            entry = {"step": float(step), "learning_rate": float(optimiser.schedule.get_last_lr()[0])}
            entry |= {name: sum(values) / len(values) for name, values in sums.items()}
            sums = {}
            if len(validation):
                found_terms = validate(optimiser.averaged, validation, config.batch_size)
                entry |= {f"validation/{name}": value for name, value in found_terms.items()}
                _check_round_trip(label, step, found_terms, config.max_round_trip)
            history.entries.append(entry)
            loss = _selection(model, entry)
            if loss <= history.best:
                history.best, history.best_step = loss, step
                best = _copy(optimiser.averaged)
            if watch is not None:
                watch(step, entry, optimiser.averaged)
            tensors = optimiser.tensors() | {f"best.{key}": value for key, value in best.items()}
            facts = {"step": step, "in_a_row": in_a_row, "identity": identity, "history": vars(history)}
            save_state(folder, step, tensors | {"rng": torch.get_rng_state()}, facts)
    if len(validation) and not history.best_step:
        raise DualflowError(
            f"{label}: no validation loss was finite, so no weights can be chosen; lower its learning rate "
            f"(now {learning_rate:g}) or use train.precision: float32"
        )
    return best, history


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


def forget_states(folder: Path) -> None:
    """Remove the training states in `folder`."""
    for state in states(folder):
        state.unlink()


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def to_inputs(batch: Item, device: torch.device) -> dict[str, Tensor]:
    """The model's inputs of a batch, on its device."""
    return {name: batch[name].to(device, non_blocking=True) for name in INPUTS if name in batch}
