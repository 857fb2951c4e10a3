"""The workflow's steps as commands. Snakemake calls them; a person seldom needs to.

Long steps check their manifests, so what is finished is not repeated. Each step locks its manifest, so that two
processes never write the same files, and ends with the run that started it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from dualflow.cli.options import CONFIG, OVERRIDES, THREADS, TRAINING_THREADS, Decorator
from dualflow.lifetime import end_with_parents, exclusive
from dualflow.process import set_threads, under_torchrun

WORKFLOW_STEPS: dict[str, click.Command] = {}
"""Step name -> command, in the order of the workflow."""

SHARD = click.option("--shard", type=click.IntRange(0), default=0, show_default=True, help="Shard, from 0.")
WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Worker processes, one core each.  [default: preprocess.workers]"
)
MODEL = click.option("--model", "name", default="dualflow", show_default=True, help="Name of a flow or baseline.")
MODELS = click.option(
    "--model",
    "names",
    multiple=True,
    default=("dualflow",),
    show_default=True,
    help="Name of a flow or baseline; repeatable.",
)
SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the training.")


def run_locked(
    step: str, function: str, config_path: Path, overrides: tuple[str, ...], threads: int | None, **arguments: Any
) -> None:
    """Call `function` of `dualflow.commands` with the configuration, under the locks of `step`.

    `threads` None stands for the configuration's `train.threads`.
    """
    end_with_parents()
    from dualflow.commands.steps import manifests_of, require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    set_threads(threads or config.train.threads)  # no numerical library is loaded yet
    require_inputs(config, step)
    module, _, attribute = function.rpartition(".")
    # The processes of one training share the locks of the first.
    shares_locks = step == "train" and under_torchrun() and os.environ["RANK"] != "0"
    with ExitStack() as locks:
        for manifest in [] if shares_locks else manifests_of(step, **arguments):
            waiting = f"{manifest}: another process works on it; waiting for it to end"
            locks.enter_context(exclusive(config.layout.lock(manifest), waiting))
        command: Callable[..., None] = getattr(import_module(f"dualflow.commands.{module}"), attribute)
        command(config, **arguments)


def _add_step(
    name: str, module: str, function: str, summary: str, *options: Decorator, threads: Decorator = THREADS
) -> None:
    """Register the step `name`, which calls `function` of `dualflow.commands.<module>` with the configuration."""

    def run_step(config_path: Path, overrides: tuple[str, ...], threads: int | None, **arguments: Any) -> None:
        run_locked(name, f"{module}.{function}", config_path, overrides, threads, **arguments)

    run_step.__doc__ = summary
    for option in reversed([CONFIG, OVERRIDES, threads, *options]):
        run_step = option(run_step)
    WORKFLOW_STEPS[name] = click.command(name)(run_step)


_add_step("cohort-shard", "make_cohort", "make_cohort", "Simulate one shard of the cohort's subjects.", SHARD)
_add_step("cohort-finish", "make_cohort", "finish_cohort", "Write the cohort's participants table and description.")
_add_step("index", "make_index", "make_index", "List the usable scans, draw the splits, and write index/summary.md.")
_add_step(
    "preprocess", "preprocess", "preprocess", "Resample one shard of the scans onto the model grid.", SHARD, WORKERS
)
_add_step("preprocess-finish", "preprocess", "finish_preprocess", "Merge the shards and write quarantine.tsv.")
_add_step("qc", "qc", "qc", "Write the quality control page, scans to review first.")
_add_step("train", "train", "train", "Train models with one seed.", MODELS, SEED, threads=TRAINING_THREADS)
_add_step(
    "convert-study",
    "convert_study",
    "convert",
    "Synthesise the held-out and unpaired scans of a study.",
    MODEL,
    SEED,
)
_add_step("evaluate", "evaluate", "evaluate", "Score trained models on the held-out scans.", MODELS, SEED)
_add_step(
    "evaluate-ceilings",
    "ceilings",
    "evaluate_ceilings",
    "Score the limits that only a simulated cohort's truth gives.",
)
_add_step("report", "report", "report", "Compare all models and write the HTML report.")
_add_step("check", "check", "check", "Verify all outputs; fail if one has changed or a scan was excluded.")
