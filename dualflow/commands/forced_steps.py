"""Steps that Snakemake is told to run although it sees no reason to.

Snakemake keeps the values with which it ran a step below the working folder, under the path of the step's output as it
was spelled. Without that record, as after a move of the results, it takes any finished step for one of today's values.
Run again, such a step keeps what it finds done with these values.
"""

from __future__ import annotations

import argparse
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
_DATABASE = STATE / "metadata.db"
"""Where the records are under `--persistence-backend db`."""


def unrecorded_steps(config: Config, steps: Sequence[str] | None = None) -> list[str]:
    """The finished steps of a study of which Snakemake has no record in this working folder.

    Args:
        config: the study's configuration.
        steps: the steps to look at; None for all of the study.
    """
    if _DATABASE.exists():
        return []
    recorded = set(_recorded_outputs())
    manifests = {step: config.layout.manifest(step) for step in (step_names(config) if steps is None else steps)}
    return [step for step, path in manifests.items() if path.is_file() and str(path) not in recorded]


def _recorded_outputs() -> Iterable[str]:
    """Paths of the outputs with a record, whose files have them as names; long names are split over folders."""
    for file in _RECORDS.rglob("*"):
        if file.is_file():
            name = "".join(part.removeprefix("@") for part in file.relative_to(_RECORDS).parts)
            with suppress(Base64Error, UnicodeError):
                yield urlsafe_b64decode(name).decode()


def steps_to_check(
    config: Config, options: Sequence[str], say: Callable[[str], object], steps: Sequence[str] | None = None
) -> list[str]:
    """The finished steps to run again because Snakemake has no record of them; `say` receives a line about them.

    There are none if the options name targets, because Snakemake would make forced outputs beside these.

    Args:
        config: the study's configuration.
        options: options of Snakemake.
        say: receives the line.
        steps: the steps that are asked for; None for all of the study.
    """
    unrecorded = unrecorded_steps(config, steps)
    if unrecorded and _name_targets(options):
        say(_advice(unrecorded))
        return []
    if unrecorded:
        say(f"{len(unrecorded)} finished steps are checked again: {STATE} has no record of their values")
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


def _name_targets(options: Sequence[str]) -> bool:
    """Whether Snakemake's options name files or rules to make."""
    if not options:
        return False
    from snakemake.cli import get_argument_parser  # type: ignore[import-untyped]  # takes half a second

    return bool(get_argument_parser().parse_known_args(list(options))[0].targets)


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
