"""`dualflow bench preprocess`: what it takes to preprocess a scan on one core, step by step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import pandas as pd

from dualflow.cohort import participants, write_subject
from dualflow.config import Config, PreprocessConfig, StudyConfig
from dualflow.data.index import pair_scans
from dualflow.data.markdown import Column, table
from dualflow.data.raw_scans import ScanFiles
from dualflow.errors import DataError, DualflowError
from dualflow.imaging.outputs import write_pair
from dualflow.imaging.pipeline import preprocess_pair
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality
from dualflow.progress import track
from dualflow.training.step_time import machine, peak_bytes
from dualflow.workers import Lost, in_workers

Row = dict[str, Any]
TOTALS = [Column("seconds", ["seconds"], 1), Column("CPU seconds", ["cpu_seconds"], 1), Column("GiB", ["peak_gib"], 2)]


def bench_preprocess(config: Config, scans: int) -> None:
    """Preprocess the first `scans` scans of the study in one worker process, and print what each took.

    Nothing is kept: the volumes go to a folder that is removed. Without a study, people are simulated first.

    Raises:
        DataError: none of the scans could be preprocessed; the message has the first one's reason.
    """
    study = config.study.model_copy(update={"side": ()})
    with _dataset(config, scans) as root, TemporaryDirectory(prefix="dualflow-") as out:
        rows = pair_scans(root, study).pairs.head(scans).to_dict("records")
        tasks = [
            (Layout(Path(out)), Scan.parse(row["scan"]), ScanFiles.of_row(root, row, study), study, config.preprocess)
            for row in rows
        ]
        # One after the other, in one process: what is loaded once shows in the first scan.
        outcomes = dict(track(in_workers(measure, tasks), "preprocess", len(tasks)))
    reasons = {rows[place]["scan"]: failed for place, row in sorted(outcomes.items()) if (failed := _failure(row))}
    for scan, reason in reasons.items():
        print(f"{scan}: set aside: {reason}", file=sys.stderr)
    measured = [row for _, row in sorted(outcomes.items()) if isinstance(row, dict)]
    if not measured:
        raise DataError(f"none of {len(rows)} scans could be preprocessed; the first: {next(iter(reasons.values()))}")
    print(report(pd.DataFrame(measured), config))


def measure(
    layout: Layout, scan: Scan, files: ScanFiles, study: StudyConfig, config: PreprocessConfig
) -> Row | DualflowError:
    """Preprocess and write one scan; return the seconds of each step, of all, and the peak memory of this process.

    What is wrong with a scan is returned, not raised.
    """
    source_row, target_row = modality(study.source), modality(study.target)
    begun, cpu = perf_counter(), process_time()
    try:
        pair = preprocess_pair(
            files.source, files.target, source_row, target_row, config, extra=files.extra, mask=files.mask
        )
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
    """The measurements, a row per scan, as text below a line that says of what they are.

    Args:
        frame: rows of `measure`.
        config: what was done.
    """
    known = [name for column in TOTALS for name in column.names]
    steps = [Column(str(name), [str(name)], 1) for name in frame if name not in ("scan", *known)]
    grid, here = " x ".join(map(str, config.preprocess.shape)), machine()
    head = (
        f"{' + '.join(config.study.sources)} to {config.study.target}, {grid} voxels of "
        f"{config.preprocess.spacing_mm:g} mm, on one core of {here['processor']}. Seconds; CPU seconds do not count "
        "waiting for other work on this machine. GiB: peak memory of the worker process so far."
    )
    return f"{head}\n\n{table(frame, [*steps, *TOTALS], 'scan', 'scan')}"


@contextmanager
def _dataset(config: Config, people: int) -> Iterator[Path]:
    """Root of the study's dataset, or of simulated people who are removed afterwards."""
    if not config.embedded:
        yield config.bids
        return
    with TemporaryDirectory(prefix="dualflow-") as folder:
        for person in track(participants(people, config.cohort.seed), "cohort"):
            write_subject(Path(folder), person)
        yield Path(folder)


def _failure(outcome: Row | DualflowError | Lost) -> str:
    """Why a scan was not preprocessed; '' if it was."""
    if isinstance(outcome, Lost):
        return outcome.reason
    return str(outcome) if isinstance(outcome, DualflowError) else ""
