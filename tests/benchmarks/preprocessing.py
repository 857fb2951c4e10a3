"""`python tests/benchmarks/preprocessing.py`: time each step of preprocessing on one core, and its peak memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import click
import pandas as pd
from command import with_config
from memory_use import peak_bytes

from dualflow.cohort import participants, write_subject
from dualflow.config import Config, PreprocessConfig, StudyConfig
from dualflow.data.index import pair_scans
from dualflow.data.markdown import Column, table
from dualflow.data.scan_files import ScanFiles
from dualflow.errors import DataError, DualflowError
from dualflow.imaging.outputs import write_pair
from dualflow.imaging.pipeline import preprocess_pair
from dualflow.imaging.raw_image import check_scan
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality
from dualflow.process import set_threads
from dualflow.progress import track
from dualflow.training.step_time import machine
from dualflow.workers import CrashedTask, run_in_workers

Row = dict[str, Any]
TOTALS = [Column("seconds", ["seconds"], 1), Column("CPU seconds", ["cpu_seconds"], 1), Column("GiB", ["peak_gib"], 2)]


def benchmark_preprocessing(config: Config, scans: int) -> None:
    """Preprocess the first scans of the study in one worker process, and print the time and memory of each.

    The volumes go to a temporary folder. Without a study, subjects are simulated first.

    Args:
        config: study, grid and preprocessing.
        scans: number of scans to time.

    Raises:
        DataError: no scan could be preprocessed; the message holds the reason of the first.
    """
    study = config.study.model_copy(update={"side": ()})
    with _dataset(config, scans) as root, TemporaryDirectory(prefix="dualflow-") as out:
        rows = pair_scans(root, study).pairs.head(scans).to_dict("records")
        tasks = [
            (Layout(Path(out)), Scan.parse(row["scan"]), ScanFiles.of_row(root, row, study), study, config.preprocess)
            for row in rows
        ]
        # A single worker takes the scans in turn, so libraries and templates load within the first scan.
        outcomes = dict(track(run_in_workers(measure, tasks, workers=1), "preprocess", len(tasks)))
    reasons = {rows[index]["scan"]: reason for index, row in sorted(outcomes.items()) if (reason := _failure(row))}
    for scan, reason in reasons.items():
        print(f"{scan}: excluded: {reason}", file=sys.stderr)
    measured = [row for _, row in sorted(outcomes.items()) if isinstance(row, dict)]
    if not measured:
        raise DataError(f"none of {len(rows)} scans could be preprocessed; the first: {next(iter(reasons.values()))}")
    print(report(pd.DataFrame(measured), config))


def measure(
    layout: Layout, scan: Scan, files: ScanFiles, study: StudyConfig, config: PreprocessConfig
) -> Row | DualflowError:
    """Preprocess and write one scan; return the seconds of each step and in total, and this process's peak memory.

    An error of the scan is returned and not raised, because the other scans go on.
    """
    source_row, target_row = modality(study.source), modality(study.target)
    begun, cpu = perf_counter(), process_time()
    try:
        images = files.open()
        for image in images.values():
            check_scan(image.path, image.digest)
        extra = {name: images[name] for name in files.extra}
        source, target, mask = (images.get(name) for name in ("source", "target", "mask"))
        pair = preprocess_pair(source, target, source_row, target_row, config, extra=extra, mask=mask)
    except DualflowError as error:
        return error
    with pair.clock("write"):
        write_pair(pair, layout, scan, source_row, target_row)
    steps = pair.clock.seconds
    seconds = perf_counter() - begun
    return {
        "scan": scan.key,
        **steps,
        "other": seconds - sum(steps.values()),
        "seconds": seconds,
        "cpu_seconds": process_time() - cpu,
        "peak_gib": peak_bytes() / (1 << 30),
    }


def report(frame: pd.DataFrame, config: Config) -> str:
    """Format the measurements as a Markdown table below a line about the study, the grid and the machine.

    Args:
        frame: rows of `measure`.
        config: the configuration that was measured.
    """
    known = [name for column in TOTALS for name in column.names]
    steps = [Column(str(name), [str(name)], 1) for name in frame if name not in ("scan", *known)]
    grid, host = " x ".join(map(str, config.preprocess.shape)), machine()
    head = (
        f"{' + '.join(config.study.sources)} to {config.study.target}, {grid} voxels of "
        f"{config.preprocess.spacing_mm:g} mm, on one core of {host['processor']}. Seconds are wall time; CPU seconds "
        "exclude time spent waiting for other processes. GiB: peak memory of the worker process so far."
    )
    return f"{head}\n\n{table(frame, [*steps, *TOTALS], 'scan', 'scan')}"


@contextmanager
def _dataset(config: Config, subjects: int) -> Iterator[Path]:
    """Root of the study's dataset, or of a temporary one with simulated subjects."""
    if not config.embedded:
        yield config.bids
        return
    with TemporaryDirectory(prefix="dualflow-") as folder:
        for person in track(participants(subjects, config.cohort.seed), "cohort"):
            write_subject(Path(folder), person)
        yield Path(folder)


def _failure(outcome: Row | DualflowError | CrashedTask) -> str:
    """Reason why a scan was not preprocessed, or ''."""
    if isinstance(outcome, CrashedTask):
        return outcome.reason
    return str(outcome) if isinstance(outcome, DualflowError) else ""


@click.command()
@with_config
@click.option("--scans", type=click.IntRange(1), default=2, show_default=True, help="Number of scans to time.")
def main(config: Config, scans: int) -> None:
    """Time the preprocessing of some scans on one core, step by step, with its peak memory.

    \b
    python tests/benchmarks/preprocessing.py
                    simulated subjects on the grid of configs/quickstart.yaml
    python tests/benchmarks/preprocessing.py --set study.bids=PATH --set study.target=FLAIR
                    --set preprocess.spacing_mm=2 --set 'preprocess.shape=[96,112,96]'
                    your own study, on a finer grid

    The scans are the first of the study. Without a study, subjects are simulated first. Nothing is kept.
    """  # noqa: D301 - click reads the character itself as the mark of a preformatted paragraph
    set_threads(1)
    benchmark_preprocessing(config, scans)


if __name__ == "__main__":
    main()
