"""How long one optimiser step of a flow takes on this machine, and what this machine is."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import psutil
import torch
from torch import Tensor, nn

from dualflow.config import Config, ModelConfig
from dualflow.errors import DualflowError
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.memory import set_memory
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.flows.pretrain import SourcePretraining
from dualflow.process import keep_freed_memory
from dualflow.training.device import autocast, chosen_device, device_of
from dualflow.training.optimiser import Optimiser
from dualflow.training.session import to_inputs

PHASES = (0.125, 0.375, 0.625, 0.875)
"""Places in the training at which steps are timed: a preset may freeze pieces for a part of it."""
WARM, TIMED, ROUNDS = 1, 4, 2
SCHEDULE = 1000
"""Length of the pretended schedule: its warm-up keeps the weights near their start while steps are timed."""


def step_seconds(config: Config, name: str, choice: ModelConfig) -> float:
    """Seconds of one optimiser step as training takes it, at the study's grid, batch size, precision and threads.

    The volumes are random, for the time does not depend on their values. A step is forward, backward, clipping, AdamW
    and the running mean; the time is the median of a few warm ones, averaged over PHASES, and over pre-training of the
    source and training of the flow by their shares of the steps. Of the medians of a phase, one for every round through
    all phases, the smallest is taken: other work on the machine can only make a step longer.

    Raises:
        DualflowError: a step was not finite, so that its time means nothing.
    """
    model, batch = random_training(config, choice)
    pretrain = model.spec.source_pretrain
    early = _mean_step(config, name, SourcePretraining(model), batch, PHASES[:1]) if pretrain else 0.0
    late = _mean_step(config, name, model, batch, PHASES)
    return pretrain * early + (1 - pretrain) * late


def random_training(config: Config, choice: ModelConfig) -> tuple[DualFlow, dict[str, Tensor]]:
    """An initialised flow of the study's grid where it would be trained, and a batch of random volumes for it."""
    keep_freed_memory()  # as a training does
    torch.manual_seed(0)
    model = untrained(config, choice)
    device = chosen_device(config.train.device)
    batch = to_inputs(random_batch(config, model, config.train.batch_size), device)
    model.to(device).initialize(**batch)
    return model, batch


def untrained(config: Config, choice: ModelConfig) -> DualFlow:
    """A flow of the study's grid, in the configuration's memory mode."""
    spec, features = preset(choice.preset, **choice.options), len(config.study.side)
    channels = len(config.study.sources)
    model = DualFlow(spec, shape=config.preprocess.shape, side_features=features, source_channels=channels)
    set_memory(model, config.train.memory)
    return model


def _mean_step(config: Config, name: str, model: nn.Module, batch: dict[str, Tensor], phases: Sequence[float]) -> float:
    """Mean over `phases` of the time of a step of `model`, in seconds: the smallest median of ROUNDS."""
    optimiser = Optimiser(model, config.train, SCHEDULE, config.train.learning_rate)
    model.train()
    rounds = []
    for _ in range(ROUNDS):
        medians = []
        for phase in phases:
            if isinstance(model, DualFlow):
                model.set_progress(phase)
            times = [timed_step(config, name, model, optimiser, batch) for _ in range(WARM + TIMED)]
            medians.append(median(times[WARM:]))
        rounds.append(medians)
    return fmean(map(min, zip(*rounds, strict=True)))


def timed_step(config: Config, name: str, model: nn.Module, optimiser: Optimiser, batch: dict[str, Tensor]) -> float:
    """Take one optimiser step; return its seconds.

    Raises:
        DualflowError: it was not finite.
    """
    begun = perf_counter()
    with autocast(config.train.precision, device_of(model)):
        loss = model(**batch)["loss"]
    norm = optimiser.step(loss)
    seconds = perf_counter() - begun
    if norm is None:
        raise DualflowError(
            f"{name}: a step on random volumes was not finite, so its time means nothing; try "
            "train.precision: float32, or leave the flow out (bench presets: --presets)"
        )
    return seconds


def peak_bytes() -> int:
    """Most memory this process has held; on Linux since the count was last set back."""
    status = Path("/proc/self/status")
    held = [line.split()[1] for line in _lines(status) if line.startswith("VmHWM")]
    if held:
        return int(held[0]) << 10
    # Also counts what the parent held when this process was forked.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1 << 10)


def machine() -> dict[str, str]:
    """What step times depend on, without the machine's name."""
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
    """Random volumes of `count` people, as a step of training is given them."""
    channels = {"target": 1, "source": len(config.study.sources)}
    if isinstance(model.mean_model, LocalLinear):  # only a closed-form mean is cross-fitted and handed to each step
        channels["mean"] = 1
    volumes = {name: torch.randn(count, width, *config.preprocess.shape) for name, width in channels.items()}
    mask = torch.ones_like(volumes["target"], dtype=torch.bool)
    return {**volumes, "side": torch.randn(count, len(config.study.side)), "mask": mask}


def _processor() -> str:
    facts = _lines(Path("/proc/cpuinfo"))
    named = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _lines(facts: Path) -> list[str]:
    """What the kernel tells in a file; nothing where the system has no such file."""
    return facts.read_text().splitlines() if facts.is_file() else []
