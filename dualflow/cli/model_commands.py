"""The commands that use a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from dualflow.cli.convert_words import ConvertCommand, parse_labels, split_words
from dualflow.cli.options import TRACKING, parse_entities
from dualflow.errors import DataError, InterruptedRunError
from dualflow.process import set_threads

LICENCE = click.option("--licence", default="", metavar="TEXT", help="Licence of the weights, as the study decides.")


@click.command(cls=ConvertCommand, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, metavar="INPUT...", type=click.UNPROCESSED)
@click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="Trained model: a folder, a bundle, or models:/NAME@ALIAS of an MLflow registry.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option(
    "--participant-label",
    "participants",
    multiple=True,
    metavar="LABEL...",
    callback=parse_labels,
    help="Subjects to convert, with or without sub-; several labels, or repeatable.  [BIDS datasets and tables only]",
)
@click.option(
    "--session-label",
    "sessions",
    multiple=True,
    metavar="LABEL...",
    callback=parse_labels,
    help="Sessions to convert, with or without ses-; several labels, or repeatable.  [BIDS datasets and tables only]",
)
@click.option("--samples", type=click.IntRange(2), default=32, show_default=True, help="Samples drawn per scan.")
@click.option("--keep-samples", type=click.IntRange(0), default=2, show_default=True, help="Samples written per scan.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Scale of the noise; 1 is the model's own, less gives smoother samples.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the samples.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes on this machine, one core each.  [default: one per core, as far as memory allows 4 GiB each]",
)
@click.option(
    "--cluster",
    default="local",
    show_default=True,
    metavar="local|ADDRESS|slurm:PROFILE",
    help="Where the processes run: on this machine, at a running Dask scheduler such as tcp://node1:8786, or in SLURM "
    "jobs of a profile such as configs/profiles/convert-slurm.yaml.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of the model; auto takes GPUs if there are any, and the processes take them in turn.",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for the preprocessing of one scan, after which it fails.  [default: that of the training]",
)
@click.option(
    "--where",
    multiple=True,
    metavar="MODALITY.ENTITY=LABEL",
    callback=parse_entities,
    help="Which of several files to take, such as T1w.acq=mprage; repeatable.  [BIDS datasets only]",
)
@click.option(
    "--runs",
    type=click.Choice(["refuse", "first", "last"]),
    default="refuse",
    show_default=True,
    help="Which of several runs to take; refuse excludes the scan.  [BIDS datasets only]",
)
@click.option(
    "--masks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A BIDS derivative dataset with your own brain masks.  [default: deepbet's masks]",
)
@click.option("--quantiles", is_flag=True, help="Also write maps of the 5, 50 and 95 percentiles.")
@click.option("--force", is_flag=True, help="Convert refused scans too; their verdict remains.")
@click.option("--dry-run", is_flag=True, help="List what would be done with each scan, and write nothing.")
@TRACKING
@click.pass_context
def convert(
    context: click.Context,
    /,
    words: tuple[str, ...],
    model: str,
    out: Path,
    workers: int | None,
    cluster: str,
    device: str,
    deadline_s: float | None,
    participants: tuple[str, ...],
    sessions: tuple[str, ...],
    where: dict[str, dict[str, str]],
    runs: Literal["refuse", "first", "last"],
    masks: Path | None,
    dry_run: bool,
    force: bool,
    tracking_uri: str,
    **options: Any,
) -> None:
    """Synthesise the target of every scan of INPUT with a trained model.

    \b
    dualflow convert t1.nii.gz --model MODEL --out out --age 71 --sex F
                    convert an image; side columns of the model are options
    dualflow convert 'data/*_T1w.nii.gz' --model MODEL --out out
                    convert several images
    dualflow convert data/bids --model MODEL --out data/bids/derivatives/dualflow --participant-label 01 02
                    convert two subjects of a BIDS dataset
    dualflow convert data/samples.tsv --model MODEL --out derivatives --workers 4
                    convert a table of samples with four processes
    dualflow convert data/new --model models:/fdg@champion --out derivatives
                    convert with the best registered model

    INPUT is one or more NIfTI images or patterns of them, a BIDS dataset, a table of samples, or a folder of DICOM
    files if dcm2niix is installed. The scans are preprocessed as the model's training scans were, and each result lies
    on its own scan's grid. Finished scans are skipped.

    Each scan gets a verdict: ok; review, converted but unusual; refused, too unlike the training scans to be converted;
    failed, not usable at all. conversion.tsv lists verdicts, reasons and figures, conversion.html shows them. The exit
    code is 3 if any scan was not converted; the others are.

    The output folder is new, or one of an earlier conversion to the same target. It holds no input and lies inside
    none, except in derivatives/ of a BIDS dataset.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    inputs, side = split_words(words)
    out = out.expanduser()
    set_threads(1)
    from dualflow.commands.convert import convert as convert_scans
    from dualflow.config import ConvertConfig
    from dualflow.inference.batch import Compute
    from dualflow.inference.conversion import plan_conversion
    from dualflow.inference.conversion_table import conversion_text, missing_volumes
    from dualflow.inference.model_location import locate_model
    from dualflow.inference.selection import Selection

    names = tuple(name.lstrip("-") for option in context.command.params for name in option.opts[-1:])
    selection = Selection(participants, sessions, side, where, runs, masks, option_names=names)
    try:
        config, folder = ConvertConfig(**options), locate_model(model, tracking_uri)
        if dry_run:
            click.echo(plan_conversion(inputs, folder, out, config, selection, force=force))
            return
        compute = Compute(workers, cluster, device, deadline_s)
        table = convert_scans(inputs, folder, out, config, selection, compute, force=force)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted; finished scans are in {out}, and the same command resumes") from None
    click.echo(conversion_text(table, out))
    sys.exit(DataError.exit_code if missing_volumes(table) else 0)


@click.command()
@click.argument("model")
@click.argument("bundle", type=click.Path(path_type=Path))
@LICENCE
@TRACKING
def export(model: str, bundle: Path, licence: str, tracking_uri: str) -> None:
    """Write a trained model as one portable folder, checked on load.

    \b
    dualflow export results/my-study/models/dualflow/seed-0 bundles/fdg
                    weights, card, README and hashes in bundles/fdg
    dualflow export MODEL bundles/fdg --licence CC-BY-4.0
                    state the licence of the weights in the README
    dualflow export models:/fdg@champion bundles/fdg
                    the best registered model

    BUNDLE converts scans on a machine without the training data: `dualflow convert STUDY --model BUNDLE`. It holds no
    labels of subjects, no paths and no code. bundle.json has the hash of every file; a file that is changed, missing or
    added is an error when the model is loaded. An earlier bundle of that name is replaced, any other folder is refused.
    Read README.md before you share it: weights may retain information on the training subjects.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.export import export as write
    from dualflow.inference.model_location import locate_model

    write(locate_model(model, tracking_uri), bundle, licence)
    click.echo(f"the bundle is in {bundle}; read {bundle / 'README.md'} before you share it")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the registered model; its versions are numbered.")
@LICENCE
@TRACKING
def publish(model: Path, name: str, licence: str, tracking_uri: str) -> None:
    """Register a trained model in MLflow, and make it the champion if it is better.

    \b
    dualflow publish results/my-study/models/dualflow/seed-0 --name fdg
                    a new version of the registered model fdg
    dualflow publish MODEL --name fdg --tracking http://127.0.0.1:5000
                    register it on a server
    dualflow convert data/new --model models:/fdg@champion --out derivatives
                    use the best version

    The version holds the bundle of `dualflow export`, a signature, and the region CRPS of each held-out subject,
    without labels. The alias champion moves to it only if it is clearly better than the champion on the same held-out
    subjects: the paired 95 % interval excludes zero and p < 0.05. If the held-out subjects differ, the alias stays.
    The output says what was decided and why. Publishing the same files again adds no version.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.publish import publish as register

    for sentence in register(model, name, tracking_uri, licence):
        click.echo(sentence)


MODEL_COMMANDS = (convert, export, publish)
"""In the order of the help."""
