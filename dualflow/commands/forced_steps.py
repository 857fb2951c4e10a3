"""Steps that Snakemake is told to run although it sees no reason to.

Snakemake keeps the values with which it ran a step below the working folder, under the path of the step's output as it
was spelled. Without that record, as after a move of the results, it takes any finished step for one of today's values.
Run again, such a step keeps what it finds done with these values.
"""

from __future__ import annotations

import argparse
import json
import os
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from dualflow.commands.run_lock import RUN, STATE
from dualflow.commands.steps import step_names
from dualflow.config import Config

_RECORDS = STATE / "metadata"
_TOLERANCE_S = 1e-3
"""Of the time in a record, which is that of the output."""


def unrecorded_steps(config: Config, steps: Sequence[str] | None = None) -> list[str]:
    """The finished steps of a study of which Snakemake has no record in this working folder.

    The record of another run of the step, such as one before results were copied here, does not count.

    Args:
        config: the study's configuration.
        steps: the steps to look at; None for all of the study.
    """
    records = {output: file for file in _RECORDS.rglob("*") if file.is_file() and (output := _output_of(file))}
    manifests = {step: config.layout.manifest(step) for step in (step_names(config) if steps is None else steps)}
    return [
        step
        for step, path in manifests.items()
        if path.is_file() and not _is_record(records.get(str(path)), path.stat().st_mtime)
    ]


def _output_of(record: Path) -> str | None:
    """The path of the output that names a record; long names are split over folders."""
    name = "".join(part.removeprefix("@") for part in record.relative_to(_RECORDS).parts)
    with suppress(Base64Error, UnicodeError):
        return urlsafe_b64decode(name).decode()
    return None


def _is_record(file: Path | None, modified: float) -> bool:
    """Whether a file is the record of an output that was last modified at the time `modified`."""
    if file is None:
        return False
    try:
        return abs(float(json.loads(file.read_text())["endtime"]) - modified) < _TOLERANCE_S
    except (OSError, ValueError, KeyError, TypeError):  # Snakemake does not write them at once
        return False


def steps_to_check(
    config: Config, options: Sequence[str], say: Callable[[str], object], steps: Sequence[str] | None = None
) -> list[str]:
    """The finished steps to run again because Snakemake has no record of them; `say` receives a line about them.

    There are none if the options name targets, because Snakemake would make forced outputs beside these, or if they
    keep the records elsewhere.

    Args:
        config: the study's configuration.
        options: options of Snakemake.
        say: receives the line.
        steps: the steps that are asked for; None for all of the study.
    """
    unrecorded = unrecorded_steps(config, steps)
    if not unrecorded:
        return []
    if options:
        from snakemake.cli import get_argument_parser  # type: ignore[import-untyped]  # takes half a second

        chosen = get_argument_parser().parse_known_args(list(options))[0]
        if chosen.drop_metadata or str(chosen.persistence_backend) == "db":
            return []
        if chosen.targets:
            say(_advice(unrecorded))
            return []
    say(f"{STATE} has no record of the values of {len(unrecorded)} finished steps; those of this run are checked again")
    return unrecorded


def warn_unrecorded(config: Config, say: Callable[[str], object]) -> None:
    """Say how a plain `snakemake` checks finished steps without a record, which `dualflow run` does on its own."""
    if RUN not in os.environ and (unrecorded := unrecorded_steps(config)):
        say(_advice(unrecorded))


def _advice(unrecorded: Sequence[str]) -> str:
    return (
        f"{len(unrecorded)} finished steps have no record in {STATE}, so that a changed configuration does not repeat "
        "them; `dualflow run` without targets checks them, or add --forceall, which keeps work done with these values"
    )


def split_forcerun(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The targets of Snakemake's option `--forcerun`, of which it takes the last alone, and the other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--forcerun", "-R", nargs="*", default=[])
    known, others = parser.parse_known_args(list(options))
    return known.forcerun, others


def forcerun(wanted: Sequence[str], manifests: Iterable[Path]) -> list[str]:
    """Snakemake's option to run `wanted` and the steps of `manifests`, to end a command: it takes all that follows."""
    targets = [*wanted, *map(str, manifests)]
    return ["--forcerun", *targets] if targets else []
