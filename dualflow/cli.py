"""The `dualflow` command. Heavy imports stay inside the commands, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dualflow import __version__
from dualflow.errors import DualflowError
from dualflow.process import set_threads


def _config(default: str, variable: str | None = None) -> Callable[[Any], Any]:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path(default),
        envvar=variable,
        show_default=True,
        show_envvar=True,
        help="The study's configuration.",
    )


CONFIG = _config("configs/quickstart.yaml", "DUALFLOW_CONFIG")
OVERRIDES = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace one value.")
THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads to use.")


class OneLineErrors(click.Group):
    """Turns a DualflowError into one line and its exit code; `DUALFLOW_TRACEBACK=1` shows where it came from."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DualflowError as error:
            if os.environ.get("DUALFLOW_TRACEBACK"):
                raise
            click.echo(f"dualflow: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Learn PET from MR with an exact-likelihood 3D flow, and fill in what is missing.

    \b
    dualflow run                      everything, on the embedded cohort
    dualflow run --config MY.yaml     everything, on your own BIDS study
    dualflow convert STUDY --model MODEL --out DERIVATIVES
                                      synthetic volumes for new scans
    dualflow bench presets            every flow at one equal budget, in one table

    The other commands are the workflow's single steps; each skips what is done and verified.
    """  # noqa: D301 - click's mark of a paragraph to keep as it is is the character itself


@main.command()
@CONFIG
@OVERRIDES
@click.option("--cores", default="all", show_default=True, help="CPU cores to use at once.")
@click.argument("snakemake_options", nargs=-1, type=click.UNPROCESSED)
def run(config_path: Path, overrides: tuple[str, ...], cores: str, snakemake_options: tuple[str, ...]) -> None:
    """Run the whole workflow with one progress display; what is done is not done again.

    Anything after `--` goes to Snakemake as it is, for example `dualflow run -- --profile configs/profiles/slurm`.
    """
    from dualflow.commands.run import run_workflow
    from dualflow.config import load_config

    sys.exit(run_workflow(load_config(config_path, overrides), cores, snakemake_options))


@main.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--subjects", type=click.IntRange(1), default=40, show_default=True, help="How many people.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same bytes.")
@THREADS
def cohort(out: Path, subjects: int, seed: int, threads: int) -> None:
    """Write the embedded cohort, a BIDS dataset of simulated people with known truth, to OUT."""
    set_threads(threads)
    from dualflow.cohort import participants, write_dataset, write_subject
    from dualflow.progress import track

    people = participants(subjects, seed)
    for person in track(people, "cohort"):
        write_subject(out, person)
    write_dataset(out, people)


def _where(chosen: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """BIDS entities by modality, from `MODALITY.ENTITY=LABEL`; an empty label means a name without the entity."""
    found: dict[str, dict[str, str]] = {}
    for one in chosen:
        key, equals, label = one.partition("=")
        name, dot, entity = key.partition(".")
        if not (equals and dot and name and entity):
            raise click.BadParameter(f"'{one}' is not of the form MODALITY.ENTITY=LABEL, such as T1w.acq=mprage")
        found.setdefault(name, {})[entity] = label
    return found


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, type=click.Path(file_okay=False, path_type=Path), help="A trained model folder."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where derivatives go.")
@click.option("--samples", type=click.IntRange(2), default=16, show_default=True, help="Samples per scan.")
@click.option("--keep-samples", type=click.IntRange(0), default=2, show_default=True, help="Samples written per scan.")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="Scale of the noise.")
@click.option(
    "--latents",
    type=click.Choice(["none", "global", "local", "spatial", "interpolate"]),
    help="What is done to drawn latents: normalised over a set, or interpolated.  [default: the model's own choice]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the samples.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, one core each.")
@click.option(
    "--where",
    multiple=True,
    metavar="MODALITY.ENTITY=LABEL",
    callback=lambda _context, _option, chosen: _where(chosen),
    help="Which of several files is meant, such as T1w.acq=mprage; repeatable.  [a BIDS dataset only]",
)
@click.option(
    "--runs",
    type=click.Choice(["refuse", "first", "last"]),
    default="refuse",
    show_default=True,
    help="Which of several runs is taken; refuse sets the scan aside.  [a BIDS dataset only]",
)
@click.option(
    "--masks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Your own brain masks, a BIDS derivative dataset.  [default: deepbet's]",
)
def convert(
    study: Path,
    model: Path,
    out: Path,
    workers: int,
    where: dict[str, dict[str, str]],
    runs: str,
    masks: Path | None,
    **options: Any,
) -> None:
    """Convert every scan of STUDY, a BIDS dataset or a table of samples, with a trained model, each onto its own grid.

    Raw scans go in; they are preprocessed as the model's training scans were. A scan that cannot be used is set aside
    in quarantine.tsv with its reason, the others go on, and the exit code is not 0. Scans that are done are skipped.
    """
    set_threads(1)
    from dualflow.config import ConvertConfig
    from dualflow.inference.batch import convert_study

    chosen = {"where": where, "runs": runs, "masks": masks}
    convert_study(study, model, out, ConvertConfig(**options), workers, chosen)


@main.command()
@CONFIG
@OVERRIDES
def deliver(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Hand in what trainings could not deliver to MLflow, for its server was away.

    It waits in RESULTS/STUDY/pending. The next training of the same model and the report hand it in too.
    """
    from dualflow.config import load_config
    from dualflow.tracking.tracked_run import deliver as hand_in

    config = load_config(config_path, overrides)
    done, left = hand_in(config.tracking, config.layout.pending_records)
    click.echo(f"{done} runs delivered to {config.tracking.uri}, {left} still wait")
    sys.exit(bool(left))


@main.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the flows that a configuration can name, or the pieces of one."""
    from dualflow.flows.presets import PRESETS, preset

    if name is None:
        for key, row in PRESETS.items():
            click.echo(f"{key:<10} {row.paper}: {row.idea}")
        return
    for key, value in preset(name).to_dict().items():
        click.echo(f"{key}: {value}")


@main.group()
def bench() -> None:
    """Measure what the flows cost and what they give for it."""


@bench.command("presets")
@_config("configs/presets.yaml")
@OVERRIDES
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=150.0,
    show_default=True,
    help="Optimiser time of each flow and seed.",
)
@click.option("--presets", "names", default="", metavar="A,B,C", help="Train these flows only.  [default: all]")
@click.option("--cores", default="1", show_default=True, help="CPU cores; trainings side by side slow each other.")
def bench_presets(config_path: Path, overrides: tuple[str, ...], seconds: float, names: str, cores: str) -> None:
    """Train every flow of a configuration at one equal budget, and compare them in one table.

    \b
    dualflow bench presets
                    all flows of configs/presets.yaml
    dualflow bench presets --presets dual_glow,dualflow
                    some of them; the table keeps what is done
    dualflow bench presets --set study.bids=results/benchmark/bids
                    on people that are there already
    dualflow bench presets --set train.seeds=[0,1,2]
                    three trainings of each flow
    dualflow bench presets --set 'extra_models.wide={preset: dualflow,
                    options: {low_rank: 48}}'
                    a variation as one more row

    The flows are `model` and `extra_models` of the configuration. First the optimiser step of each is timed on random
    volumes, for some seconds in which the machine should do nothing else, and the steps that fit into the budget are
    written to RESULTS/STUDY/compare/plan.json; they replace the configuration's own steps. Then the workflow trains and
    scores each flow. A closed-form mean is fitted outside the budget and its seconds are a column of their own.

    Given again, the command takes the plan over and does only what is not done; remove the plan to time again. The
    table is printed, written to RESULTS/STUDY/metrics/presets.tsv and presets.md, and is in MLflow the run 'preset
    comparison' with one metric per cell, named FLOW/METRIC. Flows that failed have no row, and the exit code is not 0.
    """  # noqa: D301 - click's mark of a paragraph to keep as it is is the character itself
    from dualflow.config import load_config

    config = load_config(config_path, overrides)
    set_threads(config.train.threads)
    from dualflow.commands.compare import bench_presets as compare

    sys.exit(compare(config, seconds=seconds, names=[name for name in names.split(",") if name], cores=cores))


@bench.command("forecast")
@CONFIG
@OVERRIDES
@click.option(
    "--memory",
    "memory_gib",
    type=click.FloatRange(0, min_open=True),
    metavar="GIB",
    help="Memory to fit into.  [default: this machine's, or its GPU's]",
)
def bench_forecast(config_path: Path, overrides: tuple[str, ...], memory_gib: float | None) -> None:
    """Say what a training will take before it is begun: memory, seconds per step, hours, and what would fit.

    \b
    dualflow bench forecast --config configs/dualglow-paper.yaml
                    the flow of a configuration, on this machine
    dualflow bench forecast --memory 12
                    into 12 GiB
    dualflow bench forecast --set train.batch_size=8 --set train.processes=4
                    a larger batch, shared by four processes

    Memory is followed through one step without allocating it, for each memory mode. Steps that fit are timed on random
    volumes, of a deep flow with few steps per level, so do nothing else meanwhile. Hours are those of the optimiser's
    steps and the validations, without the closed-form mean.
    """  # noqa: D301 - click's mark of a paragraph to keep as it is is the character itself
    from dualflow.config import load_config

    config = load_config(config_path, overrides)
    set_threads(config.train.threads)
    from dualflow.training.forecast import bench_forecast as forecast

    forecast(config, memory_gib)


@bench.command("rate")
@CONFIG
@OVERRIDES
def bench_rate(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Find a learning rate: the loss along rates from too small to too large, on the study's own pairs.

    \b
    dualflow bench rate
                    the flow of configs/quickstart.yaml, once it is preprocessed
    dualflow bench rate --set train.batch_size=8
                    the same with larger batches

    120 steps of training, of which nothing is kept. The default holds for the presets at 4 mm; a deeper flow, a finer
    grid or larger batches are worth the minutes.
    """  # noqa: D301 - click's mark of a paragraph to keep as it is is the character itself
    from dualflow.config import load_config

    config = load_config(config_path, overrides)
    set_threads(config.train.threads)
    from dualflow.training.learning_rate import bench_rate as find

    find(config)


def _step(name: str, text: str, *options: Callable[[Any], Any]) -> None:
    """Register the workflow step `name` as a command."""

    def command(config_path: Path, overrides: tuple[str, ...], threads: int, **arguments: Any) -> None:
        set_threads(threads)
        from importlib import import_module

        from dualflow.config import load_config

        module, function = STEPS[name]
        getattr(import_module(f"dualflow.commands.{module}"), function)(
            load_config(config_path, overrides), **arguments
        )

    command.__doc__ = text
    for option in reversed([CONFIG, OVERRIDES, THREADS, *options]):
        command = option(command)
    main.command(name)(command)


STEPS = {
    "cohort-shard": ("preprocess", "make_cohort"),
    "cohort-finish": ("preprocess", "finish_cohort"),
    "index": ("make_index", "make_index"),
    "preprocess": ("preprocess", "preprocess"),
    "preprocess-finish": ("preprocess", "finish_preprocess"),
    "qc": ("qc", "qc"),
    "train": ("train", "train"),
    "convert-study": ("convert_study", "convert"),
    "evaluate": ("evaluate", "evaluate"),
    "evaluate-ceilings": ("ceilings", "evaluate_ceilings"),
    "report": ("report", "report"),
    "check": ("check", "check"),
}
_SHARD = click.option("--shard", type=click.IntRange(0), default=0, show_default=True, help="Which part of the scans.")
_WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Worker processes, one core each.  [default: preprocess.workers]"
)
_NAME = click.option("--model", "name", default="dualflow", show_default=True, help="A flow or baseline by name.")
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which of the seeds.")

_step("cohort-shard", "Step: make one part of the embedded cohort.", _SHARD)
_step("cohort-finish", "Step: describe the embedded cohort once all its people are there.")
_step("index", "Step: list the usable scans, draw the splits, and print and write a summary (index/summary.md).")
_step("preprocess", "Step: bring one part of the scans onto the model grid.", _SHARD, _WORKERS)
_step("preprocess-finish", "Step: gather the parts and the quarantine table.")
_step("qc", "Step: write the quality control page, a card per scan with those to review first.")
_step("train", "Step: train one model with one seed.", _NAME, _SEED)
_step("convert-study", "Step: synthetic volumes for the held-out and unpaired scans.", _NAME, _SEED)
_step("evaluate", "Step: score one model on the held-out scans.", _NAME, _SEED)
_step("evaluate-ceilings", "Step: score what no predictor can beat, where the truth is known.")
_step("report", "Step: compare all models and write the HTML report.")
_step("check", "Step: fail if any scan was set aside.")

if __name__ == "__main__":
    main()
