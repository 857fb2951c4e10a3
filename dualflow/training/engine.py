"""The training loop, for anything whose forward returns a loss: the flow and the networks it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from dualflow.config import TrainConfig
from dualflow.data.augment import Augment
from dualflow.data.dataset import PairDataset, batches
from dualflow.errors import DualflowError, StoppedError
from dualflow.flows.memory import set_memory
from dualflow.process import keep_freed_memory
from dualflow.progress import progress
from dualflow.training.distributed import ALONE, Ranks, Stop
from dualflow.training.session import History, Session

Watcher = Callable[[int, Mapping[str, float], nn.Module | None], None]


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
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Tensor], History]:
    """Train `model`; return the averaged weights of the best validation, and the history.

    A state is written to `folder` at every validation, and a run that was stopped goes on from the newest whole one
    as if it had never stopped. SIGTERM, by which a scheduler announces that it takes the machine away, ends the run
    after the step at hand with a state of that step. The states are removed by `forget_states` once the model itself is
    saved.

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
        ranks: this process among those that share the training, each with its rows of every batch: together they
            train as one process would, up to rounding. Only the first writes and tracks.

    Raises:
        StoppedError: SIGTERM came.
        ConfigError: the batch cannot be shared evenly by the processes.
        DualflowError: `config.max_skipped` steps in a row were not finite, or the round trip drifted beyond
            `config.max_round_trip`.
    """
    keep_freed_memory()
    set_memory(model.to(ranks.device), config.memory)
    torch.manual_seed(seed)
    run = Session(model, config, steps, learning_rate, ranks, folder, label, identity)
    start = run.resume()
    change = Augment(config.augment) if config.augment.probability else None
    last = start if run.exhausted(start) else steps
    stream = batches(train, config.batch_size, last, seed, start, ranks.rows(config.batch_size), change)
    shown = progress(label, steps) if ranks.first else nullcontext(Silent())
    stop = Stop()
    with stop.listening(), shown as bar:
        bar.advance(start)
        for step, batch in enumerate(stream, start + 1):
            loss = run.step(step, batch)
            bar.advance(note=f"loss {loss:.3f}")
            if step % config.validate_every == 0 or step == steps:
                entry = run.validated(step, validation)
                if watch is not None and ranks.first:
                    watch(step, entry | {"samples_per_second": run.pace()}, run.optimiser.averaged)
                run.save(step)
                if run.exhausted(step):
                    bar.advance(steps - step, f"no better than step {run.history.best_step}")
                    break
            if not ranks.all_agree(not stop.asked) and step < steps:
                run.save(step)
                raise StoppedError(f"{label}: stopped by SIGTERM after step {step}; given again, it goes on")
    if len(validation) and not run.history.best_step:
        raise DualflowError(
            f"{label}: no validation loss was finite, so no weights can be chosen; lower its learning rate "
            f"(now {learning_rate:g}) or use train.precision: float32"
        )
    return run.best, run.history


class Silent:
    """A progress display that shows nothing: the first process shows all there is to see."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Show nothing."""
