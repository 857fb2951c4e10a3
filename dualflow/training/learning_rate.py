"""`dualflow lr-find`: learning-rate range test on the study's own pairs (Smith 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite

import pandas as pd

from dualflow.config import Config
from dualflow.data.augment import Augment
from dualflow.data.dataset import Item, batches
from dualflow.data.markdown import Column, table
from dualflow.data.study_pairs import learning_pairs
from dualflow.data.unseen_voxels import fill_unseen
from dualflow.errors import DualflowError
from dualflow.flows.memory import set_memory
from dualflow.flows.objective import Objective
from dualflow.process import keep_freed_memory
from dualflow.progress import progress
from dualflow.temporaries import scratch_folder
from dualflow.training.context import TrainingContext
from dualflow.training.device import autocast, select_device
from dualflow.training.distributed import ProcessGroup
from dualflow.training.optimiser import Optimiser
from dualflow.training.train_flow import prepare_flow
from dualflow.training.trainer import to_batch

LOW, HIGH, STEPS = 1e-5, 0.1, 120
SMOOTHING = 0.15
"""Weight of the current step in the running mean of the loss."""
DIVISOR = 2.0
"""Suggested rate = rate at the minimum loss / DIVISOR; the minimum is already at the edge of divergence."""
ROWS = 13
"""Approximate number of rows of the printed table."""
COLUMNS = [Column("loss (nats/voxel)", ["loss"], 3), Column("gradient norm", ["gradient_norm"], 3)]


def find_learning_rate(config: Config) -> float:
    """Print the loss over rising learning rates and a suggested rate; return the rate.

    Raises:
        DataError: the study is not preprocessed.
        DualflowError: the loss never decreased.
    """
    keep_freed_memory()
    _, _, *scans = learning_pairs(config)
    training, validation = fill_unseen(*scans)
    label, seed = f"learning rates of {config.model.preset}", config.train.seeds[0]
    with scratch_folder() as folder:
        context = TrainingContext(
            config.train,
            folder,
            seed,
            label=label,
            group=ProcessGroup(device=select_device(config.train.device)),
        )
        prepared = prepare_flow(config.model, training, validation, context)
    objective, training = prepared.objective.to(context.group.device), prepared.train
    set_memory(objective, config.train.memory)
    stream = batches(training, config.train.batch_size, STEPS, seed, augment=Augment(config.train.augment))
    with progress(label, STEPS) as bar:
        rows = []
        for row in sweep(objective, config, stream):
            rows.append(row)
            bar.advance(note=f"rate {row['rate']:.1e} loss {row['loss']:.3f}")
    frame = pd.DataFrame(rows)
    rate = suggest_rate(frame)
    chosen = frame.iloc[:: max(1, len(frame) // ROWS)]
    print("\n" + table(chosen.assign(rate=[f"{value:.1e}" for value in chosen["rate"]]), COLUMNS, "rate", "rate"))
    print(f"\nThe loss is lowest at {DIVISOR * rate:.1e}. Suggested peak rate, half of that:")
    print(f"train.learning_rate: {rate:.1e}   (current: {config.train.learning_rate:.1e})")
    return rate


def sweep(objective: Objective, config: Config, stream: Iterable[Item]) -> Iterator[dict[str, float]]:
    """Yield rate, running mean of the loss and gradient norm of each step.

    It ends at a step that is not finite, or after a quarter of the steps once the running mean exceeds the first loss.
    """
    optimiser, device = Optimiser(objective, config.train, STEPS, 1.0), select_device(config.train.device)
    objective.train()
    mean = first = None
    for step, batch in enumerate(stream):
        objective.set_progress(step / STEPS)
        rate = LOW * (HIGH / LOW) ** (step / (STEPS - 1))
        for group in optimiser.adam.param_groups:
            group["lr"] = rate
        with autocast(config.train.precision, device):
            terms = objective(to_batch(batch, device))
        loss, norm = float(terms["loss"].detach()), optimiser.step(terms["loss"])
        mean = loss if mean is None else SMOOTHING * loss + (1 - SMOOTHING) * mean
        first = loss if first is None else first
        if norm is None or not isfinite(loss) or (mean > first and step > STEPS // 4):
            return
        yield {"rate": rate, "loss": mean, "gradient_norm": norm}


def suggest_rate(frame: pd.DataFrame) -> float:
    """The rate at the lowest mean loss, divided by DIVISOR.

    Raises:
        DualflowError: the loss never decreased.
    """
    if frame.empty or frame["loss"].min() >= frame["loss"].iloc[0]:
        raise DualflowError("the loss decreased at no learning rate; try train.precision: float32, or inspect the data")
    return float(frame["rate"].iloc[int(frame["loss"].argmin())]) / DIVISOR
