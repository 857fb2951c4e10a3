"""The commands that use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dualflow.cli.options import parse_entities
from dualflow.errors import DataError, InterruptedRunError
from dualflow.process import set_threads


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(file_okay=False, path_type=Path), help="Trained model folder.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Output folder.")
@click.option("--samples", type=click.IntRange(2), default=16, show_default=True, help="Samples drawn per scan.")
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
    help="Processes on this machine, one core each.  [default: one per core, if each has 4 GiB of memory]",
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
    help="Device of the model; auto takes a GPU if there is one, which all processes share.",
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
def convert(
    study: Path,
    model: Path,
    out: Path,
    workers: int | None,
    cluster: str,
    device: str,
    where: dict[str, dict[str, str]],
    runs: str,
    masks: Path | None,
    **options: Any,
) -> None:
    """Synthesise the target of every scan of STUDY with a trained model.

    \b
    dualflow convert data/new --model results/my-study/models/dualflow/seed-0 --out derivatives
                    convert a BIDS dataset
    dualflow convert data/samples.tsv --model MODEL --out derivatives --workers 4
                    convert a table of samples with four processes

    STUDY is a BIDS dataset or a table of samples, with raw scans. They are preprocessed as the model's training scans
    were, and each result lies on its own scan's grid. A scan that cannot be used is excluded: quarantine.tsv gives the
    reason, the other scans are converted, and the exit code is 3. Finished scans are skipped.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    if not study.exists():
        raise DataError(f"STUDY {study} does not exist; name a BIDS dataset's root folder or a table of samples")
    set_threads(1)
    from dualflow.config import ConvertConfig
    from dualflow.inference.batch import convert_study

    selection = {"where": where, "runs": runs, "masks": masks}
    try:
        convert_study(study, model, out, ConvertConfig(**options), workers, selection, device, cluster)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted; finished scans are in {out}, and the same command resumes") from None
    click.echo(f"synthetic volumes are in {out}")


MODEL_COMMANDS = (convert,)
"""In the order of the help."""
