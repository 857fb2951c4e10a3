"""The main command group: help in sections, exit codes, and errors as one line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from dualflow.errors import DualflowError, InterruptedRunError
from dualflow.process import interrupt, on_sigterm

EXIT_CODES = {
    0: "success; everything asked for is done",
    1: "a step or check failed, or a run excluded scans; the output says why",
    2: "wrong usage, or a configuration value that cannot be used",
    3: "a study, scan or file that cannot be used, or that convert refused",
    4: "a model or checkpoint that is missing or does not verify",
    5: "an input that a model cannot take: wrong size, type or values",
    6: "an output file that cannot be written",
    7: "a flow that is no longer invertible",
    8: "a cluster that cannot be joined, or whose scheduler ended",
    75: "a training that was stopped and can be resumed",
    130: "interrupted by Ctrl-C or SIGTERM; the same command resumes",
}
"""Meaning of each exit code; `--help` lists them."""


class SectionedGroup(click.Group):
    """A command group with sections in its help, and one-line errors.

    `DUALFLOW_TRACEBACK=1` shows the traceback of an error instead of its line.
    """

    def __init__(self, *arguments: Any, sections: Mapping[str, Mapping[str, click.Command]], **options: Any) -> None:
        """Register the commands of all sections.

        Args:
            arguments: those of `click.Group`.
            sections: heading -> command name -> command, in the order of the help.
            options: those of `click.Group`.
        """
        super().__init__(*arguments, **options)
        self.sections = sections
        for commands in sections.values():
            for name, command in commands.items():
                self.add_command(command, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names in the order of the help."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section with whole first sentences, then the exit codes."""
        width = max(map(len, self.commands))
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(name.ljust(width), command.get_short_help_str(limit=1000)) for name, command in commands.items()]
                )
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of dualflow, Ctrl-C and SIGTERM become one line and an exit code."""
        try:
            with on_sigterm(interrupt):
                return super().invoke(ctx)
        except DualflowError as error:
            if os.environ.get("DUALFLOW_TRACEBACK"):
                raise
            click.echo(f"dualflow: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("dualflow: interrupted; the same command resumes", err=True)
            ctx.exit(InterruptedRunError.exit_code)
