"""`dualflow bench forecast`: what a training will take, said before it is begun, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import get_args

import pandas as pd
import psutil
import torch

from dualflow.config import Config
from dualflow.data.dataset import PairDataset
from dualflow.data.index import read_pairs
from dualflow.data.markdown import Column, table
from dualflow.flows.memory import Memory
from dualflow.flows.presets import preset
from dualflow.manifest import read_manifest
from dualflow.progress import track
from dualflow.tracking.store import load_client
from dualflow.training.device import chosen_device
from dualflow.training.memory_footprint import Footprint, footprint
from dualflow.training.optimiser import Optimiser
from dualflow.training.step_time import SCHEDULE, machine, random_batch, random_training, timed_step
from dualflow.training.validation import validate

GIB = 1 << 30
SHALLOW = 16
"""Steps of flow up to which a model is timed as it is; a deeper one is timed with a step per level, and a few more."""
DEEPER = 3
"""How many more: what one adds would be lost in the noise of the timing."""
WARM, TIMED = 1, 3
CONTEXT = int(0.6 * GIB)
"""What CUDA takes of a GPU for itself."""
MODES: tuple[Memory, ...] = get_args(Memory)
COLUMNS = [
    Column("memory (GiB)", ["memory_gib"], 1),
    Column("s/step", ["seconds"], 2),
    Column("hours", ["hours"], 2),
    Column("largest batch", ["batch"], 0),
]


@dataclass(frozen=True)
class Study:
    """How many scans are trained and validated on."""

    train: int
    validation: int


def bench_forecast(config: Config, memory_gib: float | None = None) -> pd.DataFrame:
    """Print what the training of the configuration's flow will take in each memory mode, and return it.

    Memory is followed through one step by sizes alone; time is measured here, on random volumes, of steps that fit.

    Args:
        config: of the study.
        memory_gib: memory to fit into; None for this machine's, or its GPU's.
    """
    study, device = scans_of(config), chosen_device(config.train.device)
    limit = _memory_of(device) if memory_gib is None else int(memory_gib * GIB)
    libraries, scans = _libraries(device), study.train + study.validation
    rows = []
    for mode in track(MODES, "forecast"):
        own = _with(config, memory=mode)
        found = footprint(own, scans)
        held = _held(own, found, libraries)
        row = {"mode": mode, "memory_gib": held / GIB, "batch": _largest_batch(own, scans, libraries, limit)}
        if held <= min(limit, _memory_of(device)):
            seconds, validation = step_seconds(own)
            row |= {"seconds": seconds, "hours": _hours(own, study, seconds, validation)}
        rows.append(row)
    frame = pd.DataFrame(rows).reindex(columns=["mode", *(name for column in COLUMNS for name in column.names)])
    _say(config, study, device, limit, found.parameters, frame)
    return frame


def scans_of(config: Config) -> Study:
    """Scans of the index where there is one, else the embedded cohort's; a study without an index has none yet."""
    if read_manifest(config.layout.manifest("index")) is not None:
        counts = read_pairs(config.layout)["split"].value_counts()
        return Study(int(counts.get("train", 0)), int(counts.get("validation", 0)))
    people = config.cohort.subjects if config.embedded else 0
    validation, test = (round(people * share) for share in (config.split.validation, config.split.test))
    return Study(people - validation - test, validation)


def step_seconds(config: Config) -> tuple[float, float]:
    """Seconds of a step, and of the validation of a batch; of a deep flow from shallow ones of the same levels.

    t(K_1, ..., K_L) = t(1, ..., 1) + sum_l (K_l - 1) (t(1, .., 1 + d, .., 1) - t(1, ..., 1)) / d
    """
    depth = preset(config.model.preset, **config.model.options).steps
    if sum(depth) <= SHALLOW:
        return _timed(config, depth)
    ones = [1] * len(depth)
    step, validation = _timed(config, ones)
    total = [step, validation]
    for level, count in enumerate(depth):
        deeper = _timed(config, [1 + DEEPER if index == level else 1 for index in range(len(depth))])
        for kind, (more, less) in enumerate(zip(deeper, (step, validation), strict=True)):
            total[kind] += (count - 1) * max(0.0, more - less) / DEEPER
    return total[0], total[1]


def _timed(config: Config, depth: Sequence[int]) -> tuple[float, float]:
    """Seconds of a step, the least of some, and of the validation of a batch."""
    share = config.train.batch_size // config.train.processes
    choice = config.model.model_copy(update={"options": {**config.model.options, "steps": list(depth)}})
    own = _with(config, batch_size=share, processes=1)
    model, batch = random_training(own, choice)
    optimiser = Optimiser(model, config.train, SCHEDULE, config.train.learning_rate)
    model.train()
    steps = [timed_step(own, config.train.memory, model, optimiser, batch) for _ in range(WARM + TIMED)]
    volumes = random_batch(own, model, share)
    items = [{name: tensor[index] for name, tensor in volumes.items()} for index in range(share)]
    begun = perf_counter()
    validate(model, PairDataset([{**item, "scan": str(index)} for index, item in enumerate(items)]), share)
    return min(steps[WARM:]), perf_counter() - begun


def _hours(config: Config, study: Study, seconds: float, validation: float) -> float:
    train = config.train
    steps = config.model.steps or train.steps
    batches = ceil(study.validation / train.batch_size)
    return (steps * seconds + ceil(steps / train.validate_every) * batches * validation) / 3600


def _held(config: Config, one: Footprint, libraries: int) -> int:
    """Bytes that a training holds: on a GPU one process's, on a CPU all processes'."""
    if chosen_device(config.train.device).type == "cuda":
        return libraries + one.on_device
    return config.train.processes * (libraries + one.peak)


def _largest_batch(config: Config, scans: int, libraries: int, limit: int) -> int:
    """The largest batch of which a step would fit, its memory taken to grow evenly with the batch."""
    processes, cuda = config.train.processes, chosen_device(config.train.device).type == "cuda"
    one, two = (footprint(_with(config, batch_size=count * processes), scans) for count in (1, 2))
    if _held(config, one, libraries) > limit:
        return 0
    room = limit - libraries if cuda else limit // processes - libraries - one.scans
    return processes * (1 + (room - one.weights - one.step) // max(1, two.step - one.step))


def _with(config: Config, **train: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _libraries(device: torch.device) -> int:
    """What a training holds before it has read anything: interpreter, torch, MLflow."""
    if device.type == "cuda":
        return CONTEXT
    import dualflow.training.train_flow  # noqa: F401

    load_client()
    return int(psutil.Process().memory_info().rss)


def _say(config: Config, study: Study, device: torch.device, limit: int, parameters: int, frame: pd.DataFrame) -> None:
    train, here = config.train, machine()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{train.threads} thread(s) of "
    where += "" if device.type == "cuda" else here["processor"]
    print(
        f"\n{config.model.preset}, {' x '.join(map(str, config.preprocess.shape))} voxels, batch {train.batch_size}"
        f"{f' over {train.processes} processes' if train.processes > 1 else ''}, {train.precision}: "
        f"{parameters / 1e6:.1f} million parameters, {config.model.steps or train.steps} steps, {study.train} "
        f"scans to learn from and {study.validation} to validate on. {where}, {limit / GIB:.0f} GiB.\n"
    )
    print(table(frame, COLUMNS, label="mode", heading="train.memory"))
    fitting = frame[frame["memory_gib"] <= limit / GIB]
    if fitting.empty:
        print(
            f"\nNothing fits into {limit / GIB:.1f} GiB. Try a smaller train.batch_size, fewer hidden channels "
            "(model.options: {hidden: [...]}), or a coarser preprocess.spacing_mm"
        )
        return
    print(f"\nThe fastest that fits is train.memory: {fitting.sort_values('seconds')['mode'].iloc[0]}")
