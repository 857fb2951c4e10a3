"""`python tests/benchmarks/step.py`: time optimiser steps against their bare convolutions, by memory mode."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, get_args

import click
import pandas as pd
import psutil
import torch
from command import with_config
from other_libraries import STACKS, build_stack, installed
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.config import Config
from dualflow.data.markdown import Column, table
from dualflow.errors import DualflowError
from dualflow.flows.memory import Memory
from dualflow.process import keep_freed_memory, release_freed_memory, set_threads
from dualflow.progress import track
from dualflow.training.device import autocast, chosen_precision, device_of, select_device
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
STACKS_NOTE = (
    "16 steps on 2 x 8 x 24 x 28 x 24, hidden 16, forward and backward of a mean log-likelihood; MemCNN's is additive "
    "and has no log-determinant."
)
Row = dict[str, Any]


class Call(NamedTuple):
    """One convolution of a step: its input, its module and its number format."""

    x: Tensor
    module: nn.Conv3d
    dtype: torch.dtype


def benchmark_step(config: Config) -> None:
    """Print the cost of a step of the configuration's flow in each memory mode, and of equal stacks of other libraries.

    Raises:
        DualflowError: a step was not finite, or its process ended early.
    """
    jobs: list[tuple[str, Callable[..., Row], tuple[Any, ...]]] = [
        (mode, measure, (config, mode)) for mode in get_args(Memory)
    ]
    jobs += [(name, measure_stack, (name,)) for name in STACKS if installed(name)]
    rows = {name: _in_new_process(name, job, arguments) for name, job, arguments in track(jobs, "time the steps")}
    modes = pd.DataFrame([{"model": name, **rows[name]} for name in get_args(Memory)])
    stacks = pd.DataFrame([{"model": name, **rows[name]} for name in STACKS if name in rows])
    precision = chosen_precision(config.train.precision, select_device(config.train.device))
    host, train, grid = machine(), config.train, " x ".join(map(str, config.preprocess.shape))
    print(
        f"\n{config.model.preset}, {grid} voxels, batch {train.batch_size}, {precision}, {train.threads} "
        f"thread(s) of {host['processor']}, torch {host['torch']}. A step is forward, backward, clipping, AdamW and "
        "running mean. Memory is the peak beyond the model and its optimiser. "
        "Bare convolutions use torch's default memory layout (contiguous channels).\n"
    )
    print(table(modes, COLUMNS, heading="memory mode"))
    print(f"\nEqual stacks in float32: {STACKS_NOTE}\n")
    print(table(stacks, COLUMNS, heading="stack"))
    missing = [name for name in STACKS if name not in rows]
    if missing:
        print(f"\nnot installed: {', '.join(missing)} (pip install FrEIA memcnn)")


def measure(config: Config, memory: Memory) -> Row:
    """Time training steps in one memory mode, and their bare convolutions in turns with them."""
    torch.set_num_threads(config.train.threads)
    train = config.train.model_copy(update={"memory": memory})
    config = config.model_copy(update={"train": train})
    model, batch = random_training(config, config.model)
    optimiser = Optimiser(model, train, SCHEDULE, train.learning_rate)
    model.train()

    def step() -> None:
        timed_step(config, memory, model, optimiser, batch)

    def forward() -> None:
        with autocast(train.precision, device_of(model)):
            model(**batch)

    return _costs(step, lambda: convolutions(model, forward), train.batch_size)


def measure_stack(name: str) -> Row:
    """Time forward and backward passes of a stack of STACKS, and their bare convolutions."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, objective, x = build_stack(name)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        objective(x).backward()  # type: ignore[no-untyped-call]

    return _costs(step, lambda: convolutions(model, lambda: objective(x)), len(x))


def convolutions(model: nn.Module, forward: Callable[[], object]) -> list[Call]:
    """Record the convolutions of one forward pass, with random inputs of the same shapes and number formats."""
    calls: list[Call] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, nn.Conv3d)
        calls.append(Call(torch.randn(inputs[0].shape, dtype=out.dtype), module, out.dtype))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, nn.Conv3d)]
    forward()
    for hook in hooks:
        hook.remove()
    return calls


def run_bare(calls: list[Call]) -> None:
    """Run forward and backward of the convolutions and of nothing else."""
    for call in calls:
        module = call.module
        weight = module.weight.detach().to(call.dtype).requires_grad_()
        x = call.x.requires_grad_()
        out = F.conv3d(x, weight, None, module.stride, module.padding)
        torch.autograd.grad(out, (x, weight), torch.ones_like(out))


def _costs(step: Callable[[], None], record: Callable[[], list[Call]], batch_size: int) -> Row:
    """Time steps and their bare convolutions in turns; take the minimum of each, because load only adds time."""
    step()  # allocates the optimiser's moments, which do not count
    before = _reset_peak()
    step()
    peak = peak_bytes()
    calls = record()
    times: dict[str, list[float]] = {"step": [], "bare": []}
    for _ in range(WARM + TIMED):
        for name, run in (("step", step), ("bare", lambda: run_bare(calls))):
            begun = perf_counter()
            run()
            times[name].append(perf_counter() - begun)
    seconds, bare = min(times["step"][WARM:]), min(times["bare"][WARM:])
    return {
        "seconds": seconds,
        "bare_seconds": bare,
        "ratio": seconds / bare,
        "samples_per_second": batch_size / seconds,
        "memory_mib": (peak - before) / MIB,
    }


def _reset_peak() -> float:
    """Return freed memory to the system, reset the peak, and return the bytes in use."""
    release_freed_memory()
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")
    return float(psutil.Process().memory_info().rss)


def _in_new_process(name: str, job: Callable[..., Row], arguments: tuple[Any, ...]) -> Row:
    """Run the job in a new process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(job, *arguments).result()
        except BrokenProcessPool:
            raise DualflowError(
                f"{name}: its process ended early, as when memory runs out; try a smaller grid"
            ) from None


@click.command()
@with_config
def main(config: Config) -> None:
    """Time an optimiser step in each memory mode, against the bare cost of its convolutions.

    \b
    python tests/benchmarks/step.py
                    the flow of configs/quickstart.yaml on its grid
    python tests/benchmarks/step.py --set model.preset=dual_glow
                    --set preprocess.spacing_mm=2 --set 'preprocess.shape=[96,112,96]'
                    another flow, on a finer grid

    Each mode is measured in a process of its own, on random volumes. Leave the machine idle meanwhile. Stacks of equal
    size made with FrEIA and MemCNN are measured too if these libraries are installed.
    """  # noqa: D301 - click reads the character itself as the mark of a preformatted paragraph
    set_threads(config.train.threads)
    benchmark_step(config)


if __name__ == "__main__":
    main()
