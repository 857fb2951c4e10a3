"""The `dualflow` command line. Heavy imports stay inside the commands, so `--help` answers at once."""

from __future__ import annotations

import click

from dualflow import __version__
from dualflow.cli.bench_commands import BENCH_COMMANDS
from dualflow.cli.group import SectionedGroup
from dualflow.cli.group_commands import GROUP_COMMANDS
from dualflow.cli.model_commands import MODEL_COMMANDS
from dualflow.cli.study_commands import STUDY_COMMANDS
from dualflow.cli.workflow_steps import WORKFLOW_STEPS

__all__ = ["USER_COMMANDS", "WORKFLOW_STEPS", "main"]

USER_COMMANDS = {
    str(command.name): command for command in (*STUDY_COMMANDS, *MODEL_COMMANDS, *GROUP_COMMANDS, *BENCH_COMMANDS)
}
"""Command name -> command, in the order of the help."""


@click.group(
    cls=SectionedGroup,
    sections={"Commands": USER_COMMANDS, "Workflow steps": WORKFLOW_STEPS},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
def main() -> None:
    """Learn PET from MR with an exact-likelihood 3D flow, and synthesise the missing scans.

    \b
    dualflow run                      the whole workflow on a simulated cohort
    dualflow init DIR                 a configuration for your own BIDS study
    dualflow run --config STUDY.yaml  the whole workflow on your own study
    dualflow convert INPUT --model MODEL --out OUT
                                      synthetic volumes for new scans, with a verdict

    Interrupted commands resume, and finished work is not repeated.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
