"""Time of one optimiser step of a model on this machine, and a description of the machine."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from dualflow.baselines.correction import Correction
from dualflow.config import Config, ModelConfig
from dualflow.data.dataset import PairDataset, collate
from dualflow.errors import DualflowError
from dualflow.flows.closed_form_fits import is_closed_form
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.memory import set_memory
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch, Objective
from dualflow.flows.source_objective import SourceObjective
from dualflow.flows.spread_map import VoxelSpread
from dualflow.process import keep_freed_memory
from dualflow.training.build_baseline import build_baseline
from dualflow.training.device import autocast, device_of, select_device, synchronize
from dualflow.training.flow_spec import flow_spec
from dualflow.training.optimiser import Optimiser
from dualflow.training.trainer import to_batch

PHASES = (0.125, 0.375, 0.625, 0.875)
"""Fractions of the training at which steps are timed, because a preset may freeze parts of the model for some steps."""
WARM, TIMED, ROUNDS = 1, 4, 2
RANDOM_SCANS = 4
"""Random scans that a baseline is fitted to before its steps are timed."""
SHARES = (0.2, 0.5, 0.2, 0.1)
"""Correlation of a fitted whitening; a new one, of white noise, needs no weights."""
SCHEDULE = 1000
"""Length of the learning-rate schedule; its warm-up keeps the weights near their start during the timing."""


def step_seconds(config: Config, name: str) -> float:
    """Seconds of one optimiser step of training, at the study's grid, batch size, precision and threads.

    The volumes are random because the time does not depend on their values. A step is forward, backward, clipping,
    AdamW and the weight average. The time of a phase is the median of a few steps after a warm-up, and the smallest
    median over ROUNDS, because other load can only lengthen a step. Phases are averaged; pre-training of the source and
    training of the flow are weighted by their shares of the steps.

    Args:
        config: the study's configuration.
        name: a flow of the configuration, or a baseline with gradient steps.

    Raises:
        DualflowError: a step was not finite, so its time is invalid.
    """
    if name not in config.flows:
        return _mean_step(config, name, *random_baseline_training(config, name), PHASES)
    objective, batch = random_training(config, config.flows[name])
    pretrain = objective.flow.spec.source_pretrain
    source_step = _mean_step(config, name, SourceObjective(objective.flow), batch, PHASES[:1]) if pretrain else 0.0
    flow_step = _mean_step(config, name, objective, batch, PHASES)
    return pretrain * source_step + (1 - pretrain) * flow_step


def random_training(config: Config, choice: ModelConfig) -> tuple[FlowObjective, Batch]:
    """An initialised flow on the study's grid and training device, and a batch of random volumes."""
    keep_freed_memory()  # as in training
    torch.manual_seed(0)
    objective = untrained(config, choice)
    device = select_device(config.train.device)
    batch = to_batch(random_batch(config, objective.flow, config.train.batch_size), device)
    if objective.flow.whitening is not None:
        objective.flow.whitening.set_correlation(torch.tensor(SHARES))
    initialize_flow(objective.to(device).flow, batch)
    return objective, batch


def random_baseline_training(config: Config, name: str) -> tuple[Objective, Batch]:
    """The objective of a baseline that is fitted to random volumes, and a batch of them.

    Raises:
        DualflowError: the baseline is fitted in closed form, without optimiser steps.
    """
    keep_freed_memory()  # as in training
    torch.manual_seed(0)
    device, shape = select_device(config.train.device), config.preprocess.shape
    features, channels = len(config.study.side), len(config.study.sources)
    model, _ = build_baseline(config, name, shape, features, channels)
    # A fit with cross-fitted means needs a few scans.
    pairs = PairDataset([_random_pair(config, index) for index in range(max(RANDOM_SCANS, config.train.batch_size))])
    logging.disable(logging.WARNING)  # of unusual coefficients
    try:
        means = model.fit(pairs, list(range(len(pairs))))
        if isinstance(model, Correction) and means is not None:
            model.finish_first_stage(pairs, means)  # as after the first stage, which has the cheaper steps
    finally:
        logging.disable(logging.NOTSET)
    objective = model.objective()
    if objective is None:
        raise DualflowError(f"{name} has no optimiser steps to time; leave it out of the plan")
    pairs = pairs if means is None else pairs.with_means(means)
    batch = collate([pairs[index] for index in range(config.train.batch_size)])
    return objective.to(device), to_batch(batch, device)


def _random_pair(config: Config, index: int) -> dict[str, Any]:
    shape, channels, side = config.preprocess.shape, 2 * len(config.study.sources), len(config.study.side)
    volumes = {"source": torch.rand(channels, *shape), "target": torch.rand(1, *shape)}
    return {
        **volumes,
        "mask": torch.ones(1, *shape, dtype=torch.bool),
        "side": torch.randn(side),
        "scan": f"sub-{index}",
    }


def untrained(config: Config, choice: ModelConfig) -> FlowObjective:
    """An untrained flow on the study's grid, in the configuration's memory mode."""
    spec, features = flow_spec(choice), len(config.study.side)
    channels = len(config.study.sources)
    model = DualFlow(spec, shape=config.preprocess.shape, side_features=features, source_channels=channels)
    set_memory(model, config.train.memory)
    return FlowObjective(model)


def _mean_step(config: Config, name: str, objective: Objective, batch: Batch, phases: Sequence[float]) -> float:
    """Mean over `phases` of the step time of `objective` in seconds, each phase with its smallest median of ROUNDS."""
    optimiser = Optimiser(objective, config.train, SCHEDULE, config.train.learning_rate)
    objective.train()
    rounds = []
    for _ in range(ROUNDS):
        medians = []
        for phase in phases:
            objective.set_progress(phase)
            times = [timed_step(config, name, objective, optimiser, batch) for _ in range(WARM + TIMED)]
            medians.append(median(times[WARM:]))
        rounds.append(medians)
    return fmean(map(min, zip(*rounds, strict=True)))


def timed_step(config: Config, name: str, objective: nn.Module, optimiser: Optimiser[Any], batch: Batch) -> float:
    """Take one optimiser step and return its seconds.

    Raises:
        DualflowError: the step was not finite.
    """
    device = device_of(objective)
    synchronize(device)
    start = perf_counter()
    with autocast(config.train.precision, device):
        loss = objective(batch)["loss"]
    norm = optimiser.step(loss)
    synchronize(device)
    seconds = perf_counter() - start
    if norm is None:
        raise DualflowError(
            f"{name}: a step on random volumes was not finite, so its time is invalid; try train.precision: float32, "
            "or leave the model out"
        )
    return seconds


def machine() -> dict[str, str]:
    """Properties of the machine that step times depend on, without its host name."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "system": platform.system(),
        "torch": torch.__version__,
    }


def random_batch(config: Config, model: DualFlow, count: int) -> dict[str, Tensor]:
    """Random volumes of `count` scans, as one training step receives them.

    Sources have intensities of 0 to 1, as preprocessing writes them. Far beyond that range the exponentials of their
    features underflow, which takes torch sixty times as long.
    """
    channels = {"target": 1, "source": 2 * len(config.study.sources)}
    if is_closed_form(model.mean_model):  # only a closed-form mean is cross-fitted and part of the batch
        channels["mean"] = 1
    volumes = {name: torch.randn(count, width, *config.preprocess.shape) for name, width in channels.items()}
    volumes["source"].sigmoid_()
    if isinstance(model.spread, VoxelSpread):
        volumes["spread"] = torch.full_like(volumes["target"], model.spread.scale)
    mask = _brain(volumes["target"])
    volumes["source"] *= mask
    return {**volumes, "side": torch.randn(count, len(config.study.side)), "mask": mask}


def _brain(like: Tensor) -> Tensor:
    """Return an ellipsoid with holes that differ between scans, `[N, 1, D, H, W]`: no two brains have the same edge."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in like.shape[2:]), indexing="ij")
    distance = torch.stack([axis.square() for axis in axes]).sum(dim=0)
    return (distance < 0.8) & (torch.rand_like(like) > 0.02)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
