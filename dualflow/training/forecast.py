"""`dualflow forecast`: memory, time and largest batch of a training, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import get_args

import pandas as pd
import psutil
import torch

from dualflow.cohort import participants
from dualflow.config import Config
from dualflow.data.dataset import PairDataset
from dualflow.data.index import read_pairs
from dualflow.data.markdown import Column, table
from dualflow.data.split import people_by_split
from dualflow.flows.memory import Memory
from dualflow.manifest import read_manifest
from dualflow.progress import track
from dualflow.tracking.mlflow_store import load_client
from dualflow.training.device import chosen_precision, select_device
from dualflow.training.flow_spec import flow_spec
from dualflow.training.memory_footprint import Footprint, footprint
from dualflow.training.optimiser import Optimiser
from dualflow.training.step_time import SCHEDULE, machine, random_batch, random_training, timed_step
from dualflow.training.validation import validate

GIB = 1 << 30
SHALLOW = 16
"""Flow steps up to which a model is timed directly; the time of a deeper one is extrapolated from shallow ones."""
DEEPER = 3
"""Extra flow steps of a level in the extrapolation; the time of a single one is within the timing noise."""
WARM, TIMED = 1, 3
CONTEXT = int(0.6 * GIB)
"""GPU memory of the CUDA context, in bytes."""
MODES: tuple[Memory, ...] = get_args(Memory)
COLUMNS = [
    Column("memory (GiB)", ["memory_gib"], 1),
    Column("s/step", ["seconds"], 2),
    Column("hours", ["hours"], 2),
    Column("largest batch", ["batch"], 0),
]


@dataclass(frozen=True)
class ScanCounts:
    """Numbers of scans for training and for validation."""

    train: int
    validation: int


def forecast_training(config: Config, memory_gib: float | None = None) -> pd.DataFrame:
    """Print and return memory, time and largest batch of the training of the configuration's flow per memory mode.

    Memory is computed from the tensor sizes of one step. Steps that fit are timed on this machine, on random volumes.

    Args:
        config: configuration of the study.
        memory_gib: memory limit; None for the memory of this machine or its GPU.
    """
    counts, device = scan_counts(config), select_device(config.train.device)
    limit = _memory_of(device) if memory_gib is None else int(memory_gib * GIB)
    libraries, scans = _library_bytes(config, device), counts.train + counts.validation
    rows = []
    for mode in track(MODES, "forecast"):
        variant = config.with_fields("train", memory=mode)
        sizes = footprint(variant, scans)
        needed = _needed_bytes(variant, sizes, libraries)
        row = {"mode": mode, "memory_gib": needed / GIB, "batch": _largest_batch(variant, scans, libraries, limit)}
        if needed <= min(limit, _memory_of(device)):
            seconds, validation = estimate_step_seconds(variant)
            row |= {"seconds": seconds, "hours": _hours(variant, counts, seconds, validation)}
        rows.append(row)
    frame = pd.DataFrame(rows).reindex(columns=["mode", *(name for column in COLUMNS for name in column.names)])
    _print_forecast(config, counts, device, limit, sizes.parameters, frame)
    return frame


def scan_counts(config: Config) -> ScanCounts:
    """Scan counts of the index, or of the embedded cohort before indexing; zero for a study without an index."""
    if read_manifest(config.layout.manifest("index")) is not None:
        counts = read_pairs(config.layout)["split"].value_counts()
        return ScanCounts(int(counts.get("train", 0)), int(counts.get("validation", 0)))
    if not config.embedded:
        return ScanCounts(0, 0)
    section = config.cohort
    people = participants(section.subjects, section.seed, section.law, section.missing_target)
    paired = [person.label for person in people if person.has_pet]
    split = people_by_split(paired, config.split, [person.label for person in people])
    return ScanCounts(split["train"], split["validation"])


def estimate_step_seconds(config: Config) -> tuple[float, float]:
    """Seconds of a training step and of the validation of one batch; deep flows are extrapolated from shallow ones.

    t(K_1, ..., K_L) = t(1, ..., 1) + sum_l (K_l - 1) (t(1, .., 1 + d, .., 1) - t(1, ..., 1)) / d
    """
    depth = flow_spec(config.model).steps
    if sum(depth) <= SHALLOW:
        return _time_steps(config, depth)
    ones = [1] * len(depth)
    step, validation = _time_steps(config, ones)
    total = [step, validation]
    for level, count in enumerate(depth):
        deeper = _time_steps(config, [1 + DEEPER if index == level else 1 for index in range(len(depth))])
        for kind, (deep, shallow) in enumerate(zip(deeper, (step, validation), strict=True)):
            total[kind] += (count - 1) * max(0.0, deep - shallow) / DEEPER
    return total[0], total[1]


def _time_steps(config: Config, depth: Sequence[int]) -> tuple[float, float]:
    """Seconds of the fastest of a few training steps, and of the validation of one batch."""
    share = config.train.batch_size // config.train.processes
    choice = config.model.model_copy(update={"options": {**config.model.options, "steps": list(depth)}})
    single = config.with_fields("train", batch_size=share, processes=1)
    objective, batch = random_training(single, choice)
    optimiser = Optimiser(objective, config.train, SCHEDULE, config.train.learning_rate)
    objective.train()
    steps = [timed_step(single, choice.preset, objective, optimiser, batch) for _ in range(WARM + TIMED)]
    volumes = random_batch(single, objective.flow, share)
    items = [{name: tensor[index] for name, tensor in volumes.items()} for index in range(share)]
    start = perf_counter()
    validate(objective, PairDataset([{**item, "scan": str(index)} for index, item in enumerate(items)]), share)
    return min(steps[WARM:]), perf_counter() - start


def _hours(config: Config, counts: ScanCounts, seconds: float, validation: float) -> float:
    train = config.train
    steps = config.model.steps or train.steps
    batches = ceil(counts.validation / train.batch_size)
    return (steps * seconds + ceil(steps / train.validate_every) * batches * validation) / 3600


def _needed_bytes(config: Config, sizes: Footprint, libraries: int) -> int:
    """Memory of a training in bytes: of one process on a GPU, of all processes on a CPU."""
    if select_device(config.train.device).type == "cuda":
        return libraries + sizes.on_device
    return config.train.processes * (libraries + sizes.peak)


def _largest_batch(config: Config, scans: int, libraries: int, limit: int) -> int:
    """The largest batch whose step fits, assuming that memory grows linearly with the batch."""
    processes, cuda = config.train.processes, select_device(config.train.device).type == "cuda"
    single, double = (footprint(config.with_fields("train", batch_size=count * processes), scans) for count in (1, 2))
    if _needed_bytes(config, single, libraries) > limit:
        return 0
    available = limit - libraries if cuda else limit // processes - libraries - single.scans
    available -= single.whitening + single.weights + single.step
    return processes * (1 + available // max(1, double.step - single.step))


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _library_bytes(config: Config, device: torch.device) -> int:
    """Memory of a training process before it reads any data: interpreter, torch, MLflow."""
    if device.type == "cuda":
        return CONTEXT
    import dualflow.training.train_flow  # noqa: F401

    load_client(config.tracking.uri)
    return int(psutil.Process().memory_info().rss)


def _print_forecast(
    config: Config, counts: ScanCounts, device: torch.device, limit: int, parameters: int, frame: pd.DataFrame
) -> None:
    train, precision = config.train, chosen_precision(config.train.precision, device)
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{train.threads} thread(s) of {machine()['processor']}"
    print(
        f"\n{config.model.preset}, {' x '.join(map(str, config.preprocess.shape))} voxels, batch {train.batch_size}"
        f"{f' over {train.processes} processes' if train.processes > 1 else ''}, {precision}: "
        f"{parameters / 1e6:.1f} million parameters, {config.model.steps or train.steps} steps, {counts.train} "
        f"training and {counts.validation} validation scans. {hardware}, {limit / GIB:.0f} GiB.\n"
    )
    print(table(frame, COLUMNS, label="mode", heading="train.memory"))
    fitting = frame[frame["memory_gib"] <= limit / GIB]
    if fitting.empty:
        print(
            f"\nNo memory mode fits into {limit / GIB:.1f} GiB. Try a smaller train.batch_size, fewer hidden channels "
            "(model.options: {hidden: [...]}), or a coarser preprocess.spacing_mm."
        )
        return
    timed = fitting.dropna(subset=["seconds"])
    if timed.empty:
        print("\nThe modes that fit need more memory than this machine has, so no step was timed.")
        return
    print(f"\nFastest mode that fits: train.memory: {timed.sort_values('seconds')['mode'].iloc[0]}")
