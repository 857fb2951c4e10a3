"""Benchmarks of what dualflow does beside synthesis."""

from __future__ import annotations

from pathlib import Path

import click

from dualflow.cli.options import CONFIG, OVERRIDES
from dualflow.process import set_threads


@click.group()
def bench() -> None:
    """Measure how well a study's verdicts on new scans work.

    \b
    dualflow bench verdict --config my-study.yaml
                    which corruptions of held-out scans are refused
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph


@bench.command()
@CONFIG
@OVERRIDES
def verdict(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Measure which corruptions of held-out scans the verdict notices.

    \b
    dualflow bench verdict
                    the quickstart, after preprocessing
    dualflow bench verdict --config my-study.yaml
                    your own study

    The study must be preprocessed: `dualflow run -- preprocess` stops there.

    The verdict is fitted on the training scans. Validation and test scans are scored as they are and with each of some
    40 corruptions, such as noise, wrong contrast, flips, misalignment and implanted lesions. A scan is refused if it
    does not look like a training scan, and flagged if it is refused or the lesion map has a high peak. The table is
    printed and written to RESULTS/STUDY/metrics/verdict.tsv and verdict.md.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "bench verdict")
    set_threads(config.train.threads)
    from dualflow.commands.bench_verdict import bench_verdict

    bench_verdict(config)


BENCH_COMMANDS = (bench,)
"""In the order of the help."""
