"""`python tests/benchmarks/many_tasks.py`: memory of scheduler and client, and seconds per task, by number of tasks."""

from __future__ import annotations

import gc
from time import perf_counter

import click
import psutil
from memory_use import release_freed_memory

from dualflow.workers import run_in_workers


def measure(tasks: int, workers: int) -> tuple[float, float]:
    """Run trivial tasks; return the memory in MiB that this process takes for them, and the seconds per task.

    A local cluster's scheduler and client live in this process. Their own memory counts too.
    """
    process, sizes = psutil.Process(), []
    begun, before = perf_counter(), process.memory_info().rss / (1 << 20)
    for count, _ in enumerate(run_in_workers(divmod, ((index, 7) for index in range(tasks)), workers), 1):
        if count % max(1, tasks // 10) == 0:
            gc.collect()
            release_freed_memory()
            sizes.append(process.memory_info().rss / (1 << 20))
    return max(sizes) - before, (perf_counter() - begun) / tasks


@click.command()
@click.option("--tasks", multiple=True, type=click.IntRange(10), default=(100, 10_000), show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
def main(tasks: tuple[int, ...], workers: int) -> None:
    """Measure the memory of the scheduler's process for some numbers of trivial tasks."""
    for count in tasks:
        memory, seconds = measure(count, workers)
        click.echo(f"{count} tasks: {memory:.1f} MiB, {1000 * seconds:.1f} ms per task")


if __name__ == "__main__":
    main()
