"""`python tests/benchmarks/step.py`: time optimiser steps against their bare convolutions, by memory mode."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from time import perf_counter
from typing import Any, NamedTuple, get_args

import click
import pandas as pd
import torch
from command import with_config
from memory_use import peak_bytes, reset_peak
from other_libraries import STACKS, build_stack, installed
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.config import Config
from dualflow.data.markdown import Column, table
from dualflow.errors import DualflowError
from dualflow.flows.memory import Memory
from dualflow.process import keep_freed_memory, set_threads
from dualflow.progress import track
from dualflow.training.device import autocast, chosen_precision, device_of, select_device
from dualflow.training.optimiser import Optimiser
from dualflow.training.step_time import SCHEDULE, machine, random_training, timed_step

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
"""Memory layouts of bare convolutions."""
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
        f"Bare convolutions: the faster of {' and '.join(LAYOUTS)} memory layout.\n"
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
            model(batch)

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


def bare_pass(call: Call, layout: torch.memory_format, device: torch.device) -> Callable[[], object]:
    """Forward and backward pass of one convolution of a step and nothing else, in a memory layout."""
    weight = call.module.weight.detach().to(call.dtype).contiguous(memory_format=layout).requires_grad_()
    x = call.x.to(device).contiguous(memory_format=layout).requires_grad_()
    stride, padding = call.module.stride, call.module.padding
    gradient = torch.ones_like(F.conv3d(x, weight, None, stride, padding))
    return lambda: torch.autograd.grad(F.conv3d(x, weight, None, stride, padding), (x, weight), gradient)


def run_all(passes: list[Callable[[], object]]) -> None:
    """Run the passes one after the other."""
    for one in passes:
        one()


def _costs(step: Callable[[], None], record: Callable[[], list[Call]], batch_size: int) -> Row:
    """Time steps and their bare convolutions in turns; take the minimum of each, because load only adds time.

    The convolutions are timed in each of LAYOUTS.
    """
    step()  # allocates the optimiser's moments, which do not count
    before = reset_peak()
    step()
    peak = peak_bytes()
    calls, device = record(), torch.device("cpu")
    bare = {name: [bare_pass(call, layout, device) for call in calls] for name, layout in LAYOUTS.items()}
    runs = {"step": step} | {name: partial(run_all, passes) for name, passes in bare.items()}
    times = {name: list[float]() for name in runs}
    for _ in range(WARM + TIMED):
        for name, run in runs.items():
            begun = perf_counter()
            run()
            times[name].append(perf_counter() - begun)
    least = {name: min(values[WARM:]) for name, values in times.items()}
    seconds, bare_seconds = least.pop("step"), min(least.values())
    return {
        "seconds": seconds,
        "bare_seconds": bare_seconds,
        "ratio": seconds / bare_seconds,
        "samples_per_second": batch_size / seconds,
        "memory_mib": (peak - before) / MIB,
    }


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
