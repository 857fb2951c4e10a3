"""`make gpu-check`: check training, conversion and forecast on this machine's GPU, and write a table of the results."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, perf_counter

import click
import torch
from gpu_rows import CHECKS, SCALES, Outcome

from dualflow import __version__
from dualflow.commit import commit_text
from dualflow.errors import ConfigError
from dualflow.process import set_threads

BUDGET_S = 600.0
"""Seconds after which the rows that are left fail."""
NO_GPU = "finds no GPU; use a machine with one and a CUDA build of torch, or --device cpu for a reduced check"


def run_checks(names: list[str], device: str, budget: float = BUDGET_S) -> dict[str, tuple[Outcome, float]]:
    """Run checks one after the other; return the outcome and the seconds of each.

    Each runs in a process of its own, so one that fails, crashes or hangs does not stop the others.
    """
    outcomes, deadline = dict[str, tuple[Outcome, float]](), monotonic() + budget
    for name in names:
        start = perf_counter()
        outcome = _run_in_process(name, device, deadline - monotonic())
        outcomes[name] = outcome, perf_counter() - start
        print(f"{'pass' if outcome.passed else 'FAIL'}  {CHECKS[name][0]}: {outcome.numbers}", flush=True)
    return outcomes


def report(outcomes: dict[str, tuple[Outcome, float]], device: str) -> str:
    """Format the outcomes as Markdown: a line about the device, versions and date, and a row per check."""
    rows = [
        f"| {CHECKS[name][0]} | {'pass' if outcome.passed else '**fail**'} | {outcome.numbers} | {seconds:.0f} |"
        for name, (outcome, seconds) in outcomes.items()
    ]
    passed = sum(outcome.passed for outcome, _ in outcomes.values())
    return "\n".join(
        [
            f"{describe(device)}, torch {torch.__version__}, dualflow {__version__}, {datetime.now(UTC):%Y-%m-%d}: "
            f"{passed} of {len(outcomes)} checks passed.",
            "",
            "| check | result | numbers | seconds |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def describe(device: str) -> str:
    """Name the device."""
    if device == "cpu":
        return "CPU, reduced sizes"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA "
        f"{torch.version.cuda}"
    )


def _run_in_process(name: str, device: str, limit: float) -> Outcome:
    if limit <= 0:
        return Outcome(False, "not run: no time left")
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(name, device, sender))
    process.start()
    sender.close()  # so that the end of the process ends the wait
    try:
        if not receiver.poll(limit):
            return Outcome(False, f"stopped after {limit:.0f} s")
        outcome: Outcome = receiver.recv()
        return outcome
    except EOFError:
        process.join()
        return Outcome(False, f"its process ended early with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send_outcome(name: str, device: str, sender: Connection) -> None:
    set_threads(1)
    try:
        outcome = CHECKS[name][1](SCALES[device])
    except Exception as error:  # a row of the table, not the end of the check
        message = " ".join(str(error).split())
        outcome = Outcome(False, f"{type(error).__name__}: {message[:300]}")
    sender.send(outcome)


@click.command()
@click.option("--device", type=click.Choice(list(SCALES)), default="cuda", show_default=True, help="Device to check.")
@click.option("--row", "names", multiple=True, type=click.Choice(list(CHECKS)), help="Check only this; repeatable.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("results/gpu-check.md"),
    show_default=True,
    help="Table of the results.",
)
def main(device: str, names: tuple[str, ...], out: Path) -> None:
    """Check training, conversion and forecast on a GPU in at most ten minutes, and write a Markdown table.

    \b
    python tests/benchmarks/gpu_check.py
                    all checks on this machine's GPUs
    python tests/benchmarks/gpu_check.py --device cpu
                    the same checks at reduced size, without a GPU

    The exit code is 0 if all checks pass, 1 if one fails, and 2 without a GPU.
    """  # noqa: D301 - click reads the character itself as the mark of a preformatted paragraph
    if device == "cuda" and not torch.cuda.is_available():
        click.echo(f"{Path(sys.argv[0]).name}: torch {torch.__version__} {NO_GPU}", err=True)
        sys.exit(ConfigError.exit_code)
    outcomes = run_checks(list(names or CHECKS), device)
    commit_text(out, report(outcomes, device))
    click.echo(f"{out} has the table")
    sys.exit(not all(outcome.passed for outcome, _ in outcomes.values()))


if __name__ == "__main__":
    main()
