"""`dualflow bench rate`: learning rates from too small to too large, tried on the study's own pairs (Smith 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from torch import nn

from dualflow.config import Config
from dualflow.data.dataset import Item, batches
from dualflow.data.markdown import Column, table
from dualflow.data.study_pairs import learning_pairs
from dualflow.errors import DualflowError
from dualflow.flows.memory import set_memory
from dualflow.process import keep_freed_memory
from dualflow.progress import progress
from dualflow.training.device import autocast, chosen_device
from dualflow.training.distributed import Ranks
from dualflow.training.optimiser import Optimiser
from dualflow.training.session import to_inputs
from dualflow.training.train_flow import prepared_flow

LOW, HIGH, STEPS = 1e-5, 0.1, 120
SMOOTHING = 0.15
"""Share of a step's loss in the running mean; the rest is what it was."""
BELOW = 2.0
"""How far below the rate of the lowest loss the advice is: there a step up already makes it worse."""
SHOWN = 13
COLUMNS = [Column("loss (nats/voxel)", ["loss"], 3), Column("gradient norm", ["gradient_norm"], 3)]


def bench_rate(config: Config) -> float:
    """Print the loss along rising learning rates and the rate that it advises, and return that.

    Raises:
        DataError: the study has not been preprocessed.
        DualflowError: the loss never fell.
    """
    keep_freed_memory()
    _, encoder, training, validation = learning_pairs(config)
    label, seed = f"rates for {config.model.preset}", config.train.seeds[0]
    with TemporaryDirectory() as folder:
        model, training, _ = prepared_flow(
            config.model,
            training,
            validation,
            config.train,
            side_features=len(encoder.names),
            label=label,
            seed=seed,
            folder=Path(folder),
            ranks=Ranks(device=chosen_device(config.train.device)),
        )
    set_memory(model, config.train.memory)
    stream = batches(training, config.train.batch_size, STEPS, seed)
    with progress(label, STEPS) as shown:
        rows = []
        for row in tried(model, config, stream):
            rows.append(row)
            shown.advance(note=f"rate {row['rate']:.1e} loss {row['loss']:.3f}")
    frame = pd.DataFrame(rows)
    rate = advised(frame)
    chosen = frame.iloc[:: max(1, len(frame) // SHOWN)]
    print("\n" + table(chosen.assign(rate=[f"{value:.1e}" for value in chosen["rate"]]), COLUMNS, "rate", "rate"))
    print(f"\nIts lowest mean is at {BELOW * rate:.1e}; half of that is a peak to train with:")
    print(f"train.learning_rate: {rate:.1e}   (now {config.train.learning_rate:.1e})")
    return rate


def tried(model: nn.Module, config: Config, stream: Iterable[Item]) -> Iterator[dict[str, float]]:
    """Yield rate, running mean of the loss, and gradient norm of each step, until the loss is back where it began."""
    optimiser, device = Optimiser(model, config.train, STEPS, 1.0), chosen_device(config.train.device)
    model.train()
    mean = first = None
    for step, batch in enumerate(stream):
        rate = LOW * (HIGH / LOW) ** (step / (STEPS - 1))
        for group in optimiser.adam.param_groups:
            group["lr"] = rate
        with autocast(config.train.precision, device):
            terms = model(**to_inputs(batch, device))
        loss, norm = float(terms["loss"].detach()), optimiser.step(terms["loss"])
        mean = loss if mean is None else SMOOTHING * loss + (1 - SMOOTHING) * mean
        first = loss if first is None else first
        if norm is None or not isfinite(loss) or (mean > first and step > STEPS // 4):
            return
        yield {"rate": rate, "loss": mean, "gradient_norm": norm}


def advised(frame: pd.DataFrame) -> float:
    """Half of the rate with the lowest mean loss.

    Raises:
        DualflowError: the loss never fell.
    """
    if frame.empty or frame["loss"].min() >= frame["loss"].iloc[0]:
        raise DualflowError("the loss fell at no learning rate; try train.precision: float32, or look at the data")
    return float(frame["rate"].iloc[int(frame["loss"].argmin())]) / BELOW
