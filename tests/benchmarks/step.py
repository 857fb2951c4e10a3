"""`dualflow bench step`: what an optimiser step costs in each memory mode, over the bare cost of its convolutions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, get_args

import pandas as pd
import psutil
import torch
from benchmarks.other_libraries import STACKS, installed, stack
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.config import Config
from dualflow.data.markdown import Column, table
from dualflow.errors import DualflowError
from dualflow.flows.memory import Memory
from dualflow.process import keep_freed_memory, release_freed_memory
from dualflow.progress import track
from dualflow.training.device import autocast, device_of
from dualflow.training.optimiser import Optimiser
from dualflow.training.step_time import SCHEDULE, machine, peak_bytes, random_training, timed_step

WARM, TIMED = 2, 5
MIB = 1 << 20
COLUMNS = [
    Column("s/step", ["seconds"]),
    Column("bare convolutions (s)", ["bare_seconds"]),
    Column("over bare", ["ratio"], 2),
    Column("samples/s", ["samples_per_second"], 2),
    Column("memory (MiB)", ["memory_mib"], 0),
]
Row = dict[str, Any]


class Call(NamedTuple):
    """One convolution of a step: its input, and what is done to it."""

    x: Tensor
    module: nn.Conv3d
    dtype: torch.dtype


def bench_step(config: Config) -> None:
    """Print what a step of the configuration's flow costs in each memory mode, and equal stacks of other libraries.

    Raises:
        DualflowError: a step was not finite, or its process ended early.
    """
    jobs: list[tuple[str, Callable[..., Row], tuple[Any, ...]]] = [
        (mode, measure, (config, mode)) for mode in get_args(Memory)
    ]
    jobs += [(name, measure_stack, (name,)) for name in STACKS if installed(name)]
    rows = {name: _alone(name, job, arguments) for name, job, arguments in track(jobs, "time the steps")}
    modes = pd.DataFrame([{"model": name, **rows[name]} for name in get_args(Memory)])
    stacks = pd.DataFrame([{"model": name, **rows[name]} for name in STACKS if name in rows])
    here, train, grid = machine(), config.train, " x ".join(map(str, config.preprocess.shape))
    print(
        f"\n{config.model.preset}, {grid} voxels, batch {train.batch_size}, {train.precision}, {train.threads} "
        f"thread(s) of {here['processor']}, torch {here['torch']}. A step is forward, backward, clipping, AdamW and "
        "running mean; memory is the most that it takes beside the model and its optimiser. "
        "Bare convolutions lie in memory as torch lays them by itself, channel by channel.\n"
    )
    print(table(modes, COLUMNS, heading="memory mode"))
    print(f"\nEqual stacks in float32: {STACKS_ARE}\n")
    print(table(stacks, COLUMNS, heading="stack"))
    missing = [name for name in STACKS if name not in rows]
    if missing:
        print(f"\nnot installed: {', '.join(missing)} (pip install FrEIA memcnn)")


STACKS_ARE = (
    "16 steps on 2 x 8 x 24 x 28 x 24, hidden 16, forward and backward of a mean log-likelihood; MemCNN's is additive "
    "and has no log-determinant."
)


def measure(config: Config, memory: Memory) -> Row:
    """The cost of a training step in one memory mode; of its convolutions alone, taken in turns with it."""
    torch.set_num_threads(config.train.threads)
    train = config.train.model_copy(update={"memory": memory})
    config = config.model_copy(update={"train": train})
    model, batch = random_training(config, config.model)
    optimiser = Optimiser(model, train, SCHEDULE, train.learning_rate)
    model.train()

    def step() -> None:
        timed_step(config, memory, model, optimiser, batch)

    def once() -> None:
        with autocast(train.precision, device_of(model)):
            model(**batch)

    return _costs(step, lambda: convolutions(model, once), train.batch_size)


def measure_stack(name: str) -> Row:
    """The cost of forward and backward of a stack of STACKS."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, objective, x = stack(name)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        objective(x).backward()  # type: ignore[no-untyped-call]

    return _costs(step, lambda: convolutions(model, lambda: objective(x)), len(x))


def convolutions(model: nn.Module, once: Callable[[], object]) -> list[Call]:
    """The convolutions of one forward pass, with random inputs of the sizes and number formats that they had."""
    calls: list[Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, nn.Conv3d)
        calls.append(Call(torch.randn(inputs[0].shape, dtype=out.dtype), module, out.dtype))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv3d)]
    once()
    for hook in hooks:
        hook.remove()
    return calls


def run_bare(calls: list[Call]) -> None:
    """Forward and backward of the convolutions and of nothing else."""
    for x, module, dtype in calls:
        weight = module.weight.detach().to(dtype).requires_grad_()
        seen = x.requires_grad_()
        out = F.conv3d(seen, weight, None, module.stride, module.padding)
        torch.autograd.grad(out, (seen, weight), torch.ones_like(out))


def _costs(step: Callable[[], None], find: Callable[[], list[Call]], batch: int) -> Row:
    """Times of steps and of their bare convolutions in turns: each the least of some, for load only adds to them."""
    step()  # the optimiser's moments are part of what is there before
    before = _forget_peak()
    step()
    peak = peak_bytes()
    calls = find()
    times: dict[str, list[float]] = {"step": [], "bare": []}
    for _ in range(WARM + TIMED):
        for name, run in (("step", step), ("bare", lambda: run_bare(calls))):
            begun = perf_counter()
            run()
            times[name].append(perf_counter() - begun)
    seconds, bare = (min(found[WARM:]) for found in times.values())
    return {
        "seconds": seconds,
        "bare_seconds": bare,
        "ratio": seconds / bare,
        "samples_per_second": batch / seconds,
        "memory_mib": (peak - before) / MIB,
    }


def _forget_peak() -> float:
    """Give free memory back to the system, start counting the peak from here, and return what is held."""
    release_freed_memory()
    with suppress(OSError):  # of Linux
        Path("/proc/self/clear_refs").write_text("5")
    return float(psutil.Process().memory_info().rss)


def _alone(name: str, job: Callable[..., Row], arguments: tuple[Any, ...]) -> Row:
    """Do the job in a process of its own, so that nobody else's memory counts."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(job, *arguments).result()
        except BrokenProcessPool:
            raise DualflowError(
                f"{name}: its process ended early, as when memory runs out; try a smaller grid"
            ) from None
