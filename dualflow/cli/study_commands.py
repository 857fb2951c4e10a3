"""The commands of a study: prepare it, run its workflow, choose its flow."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from dualflow.cli.options import CONFIG, OVERRIDES, THREADS, checked_cores, command_settings, config_option
from dualflow.process import set_threads

DRY_RUN = re.compile(r"--dry.*|-[DFSafhklptv]*n.*")
"""Options by which Snakemake runs no step: `--dry-run` and its short forms, and clusters such as `-np`, in which flags
without values precede the `n`."""


@click.command()
@CONFIG
@OVERRIDES
@click.option("--cores", callback=checked_cores, default="all", show_default=True, help="CPU cores to use at once.")
@click.option("-n", "--dry-run", is_flag=True, help="List the steps that would run, each with its reason, and stop.")
@click.argument("snakemake_options", nargs=-1, type=click.UNPROCESSED)
def run(
    config_path: Path,
    overrides: tuple[str, ...],
    cores: str,
    dry_run: bool,
    snakemake_options: tuple[str, ...],
) -> None:
    """Run the whole workflow: preprocess, train, convert, evaluate, report.

    \b
    dualflow run
                    a simulated cohort, results in results/quickstart
    dualflow run --config my-study.yaml --dry-run
                    list what would run on your own study, and why
    dualflow run --config my-study.yaml -- qc
                    stop after quality control, before training
    dualflow run --config my-study.yaml -- train/dualflow_seed-0
                    stop after one training
    dualflow run --config my-study.yaml -- --profile configs/profiles/slurm
                    run on a cluster; everything after -- goes to Snakemake

    Steps: cohort (of a simulated study), index, preprocess, qc, train/MODEL_seed-S, convert, evaluate/MODEL_seed-S,
    evaluate/ceilings, impute and analyse/NAME (with the section impute), report, check.

    Re-running is a no-op, interrupted runs resume, and an edited configuration reruns only the affected steps. Results
    go to RESULTS/STUDY below the current folder. The command succeeds only if every step is done and all files verify.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import with_manifests
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    options = with_manifests(config, snakemake_options)
    if dry_run or any(map(DRY_RUN.fullmatch, options)):
        from dualflow.commands.dry_run import list_steps

        sys.exit(list_steps(config, options))
    from dualflow.commands.run import run_workflow

    sys.exit(run_workflow(config, cores, options))


@click.command()
@click.argument("bids", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: DIR's name + .yaml, here]"
)
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def init(bids: Path, out: Path | None, force: bool) -> None:
    """Write a commented study configuration for the BIDS dataset in DIR.

    \b
    dualflow init data/my-study
                    look at the dataset, write my-study.yaml
    dualflow init data/my-study --out configs/fdg.yaml --force
                    write another file, over an earlier one

    The command looks at modalities, PET tracers, sessions and the columns of participants.tsv, and chooses source,
    target and side information. Read the file before you run it.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.init import write_study_config

    click.echo(write_study_config(bids, out, force=force))


@click.command()
@click.option("--config", "config_name", metavar="FILE", help="Also check this configuration and its folders.")
@OVERRIDES
def doctor(config_name: str | None, overrides: tuple[str, ...]) -> None:
    """Check Python, torch, GPU, threads, memory, disk, Snakemake and tracking.

    \b
    dualflow doctor
                    check this machine
    dualflow doctor --config my-study.yaml
                    check it for a study: data, disk and tracking server

    Each line is ok, warn or fail, and says what to do. A warning does not prevent a run; a failure does, and the exit
    code is 1.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.doctor import diagnose

    if overrides and config_name is None:
        raise click.UsageError("--set replaces a value of --config; name a configuration too")
    sys.exit(diagnose(config_name, overrides))


@click.command()
@config_option("compare")
@OVERRIDES
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Optimiser time of each model, fold and seed.",
)
@click.option("--folds", type=click.IntRange(2), help="Number of folds.  [default: split.folds]")
@click.option(
    "--cores",
    callback=checked_cores,
    default="1",
    show_default=True,
    help="CPU cores; parallel trainings slow each other down.",
)
@click.argument("names", nargs=-1)
def compare(
    config_path: Path, overrides: tuple[str, ...], seconds: float, folds: int | None, cores: str, names: tuple[str, ...]
) -> None:
    """Train models with the same time budget and compare them in one table.

    \b
    dualflow compare --cores 2
                    all models of configs/compare.yaml, over its folds
    dualflow compare dualflow dual_glow unet
                    three models; the table keeps finished models
    dualflow compare --config my-study.yaml --folds 5 --seconds 600
                    your own study; each person is tested once per seed
    dualflow compare --config presets
                    all presets and networks, on one split
    dualflow compare --config ablations
                    the default flow without one of its parts
    dualflow compare --set 'extra_models.wide={preset: dualflow,
                    options: {low_rank: 48}}'
                    one more row, a variant of a preset

    The models are `model`, `extra_models` and `baselines.models` of the configuration. The command first times the
    optimiser step of each on random volumes; keep the machine idle meanwhile. RESULTS/STUDY/compare/plan.json records
    the number of steps that fit into the budget, and these replace the configuration's steps. Closed forms take no
    steps. Then the workflow trains and scores the models, fold by fold: each fold is a study of its own below
    RESULTS/STUDY/compare, and all share their simulated and preprocessed scans. Without folds there is one such study,
    with the split of yours. Models that your study has trained stay as they are.

    A second call reuses the plan and does only what is missing, also after an interruption; remove the plan to time
    again. The tables are printed and written to RESULTS/STUDY/metrics/comparison.tsv, comparison_differences.tsv,
    comparison_scores.tsv and comparison.md. In MLflow they are the run 'comparison' or, with folds,
    'comparison over K folds'. A failed model has no row, and the exit code is not 0.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    set_threads(config.train.threads)
    from dualflow.commands.compare import compare as compare_models

    settings = command_settings(config_path, overrides, default="compare")
    sys.exit(compare_models(config, seconds=seconds, names=names, folds=folds, cores=cores, settings=settings))


@click.command()
@CONFIG
@OVERRIDES
@click.option(
    "--memory",
    "memory_gib",
    type=click.FloatRange(0, min_open=True),
    metavar="GIB",
    help="Memory limit.  [default: the memory of this machine or its GPU]",
)
def forecast(config_path: Path, overrides: tuple[str, ...], memory_gib: float | None) -> None:
    """Forecast the memory, seconds per step and hours of a training.

    \b
    dualflow forecast --config dualglow-paper
                    the flow of a configuration, on this machine
    dualflow forecast --memory 12
                    what fits into 12 GiB
    dualflow forecast --set train.batch_size=8 --set train.processes=4
                    a larger batch on four processes

    Memory is computed for one step and each memory mode without allocating it. Steps that fit are timed on random
    volumes; keep the machine idle meanwhile. Deep flows are timed with few steps per level. The hours include the
    optimiser's steps and the validations, not the fit of a closed-form mean.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    set_threads(config.train.threads)
    from dualflow.training.forecast import forecast_training

    forecast_training(config, memory_gib)


@click.command("lr-find")
@CONFIG
@OVERRIDES
def lr_find(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Suggest a learning rate from a range test on the study's own pairs.

    \b
    dualflow lr-find
                    the flow of the quickstart, after preprocessing
    dualflow lr-find --config my-study.yaml --set train.batch_size=8
                    your own study, with larger batches

    The study must be preprocessed: `dualflow run -- preprocess` stops there.

    The test takes 120 training steps with a rising rate and keeps no weights. The default rate suits the presets at
    4 mm; use the test for a deeper flow, a finer grid or larger batches.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "lr-find")
    set_threads(config.train.threads)
    from dualflow.training.learning_rate import find_learning_rate

    find_learning_rate(config)


@click.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the flows a configuration can name, or the fields of one.

    \b
    dualflow presets
                    one line per flow: paper and idea
    dualflow presets dualflow
                    the fields that model.options can replace
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.flows.presets import PRESETS, preset

    if name is None:
        for key, row in PRESETS.items():
            click.echo(f"{key:<10} {row.paper}: {row.idea}")
        return
    for key, value in preset(name).to_dict().items():
        click.echo(f"{key}: {value}")


@click.command()
@CONFIG
@OVERRIDES
def sync(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Upload tracking records queued while the MLflow server was unreachable.

    \b
    dualflow sync --config my-study.yaml
                    after the server is back

    The queue is RESULTS/STUDY/pending, and that of each fold of a comparison. The next step of the same model, the
    comparison and the report upload it too. The exit code is 1 if records remain in the queue.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.study_config import load_study_config
    from dualflow.config import public_uri
    from dualflow.tracking.sync import sync_all

    config = load_study_config(config_path, overrides)
    uploaded, queued = sync_all(config.tracking, config.layout)
    click.echo(f"{uploaded} runs uploaded to {public_uri(config.tracking.uri)}, {queued} still queued")
    sys.exit(bool(queued))


@click.command()
@CONFIG
@OVERRIDES
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on 127.0.0.1.")
def ui(config_path: Path, overrides: tuple[str, ...], port: int) -> None:
    """Show the tracked runs in MLflow's pages, on this machine alone.

    \b
    dualflow ui
                    the runs of results/mlflow.db on http://127.0.0.1:5000
    dualflow ui --config my-study.yaml --port 5001
                    the store that the study's tracking.uri names, on another port

    MLflow's telemetry is off. Ctrl-C ends the server.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.study_config import load_study_config
    from dualflow.tracking.ui import serve_ui

    config = load_study_config(config_path, overrides)
    serve_ui(config.tracking, config.study.name, port)


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--subjects", type=click.IntRange(1), default=40, show_default=True, help="Number of subjects.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Equal seeds give equal bytes.")
@click.option(
    "--law", type=click.Choice(["regional", "hard"]), default="regional", show_default=True, help="Law of uptake."
)
@THREADS
def cohort(out: Path, subjects: int, seed: int, law: str, threads: int) -> None:
    """Write a simulated BIDS dataset with known ground truth to OUT, a new folder or that of an earlier cohort.

    \b
    dualflow cohort data/simulated --subjects 12
                    twelve subjects with T1w, FDG PET and participants.tsv
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    set_threads(threads)
    from dualflow.cohort import participants, require_own, write_dataset, write_subject
    from dualflow.progress import track

    require_own(out)
    drawn = participants(subjects, seed, law)
    for subject in track(drawn, "cohort"):
        write_subject(out, subject)
    write_dataset(out, drawn)


STUDY_COMMANDS = (run, init, doctor, compare, forecast, lr_find, presets, sync, ui, cohort)
"""In the order of the help."""
