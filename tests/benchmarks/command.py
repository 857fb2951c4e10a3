"""Command line of the benchmarks: the options --config and --set, and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from dualflow.config import load_config
from dualflow.errors import DualflowError


def with_config(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options --config and --set, and call `function` with the configuration that they name.

    A DualflowError becomes one line and its exit code, as it does in the `dualflow` command.
    """

    @click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path("configs/quickstart.yaml"),
        envvar="DUALFLOW_CONFIG",
        show_default=True,
        show_envvar=True,
        help="The study's configuration.",
    )
    @click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace one value.")
    @wraps(function)
    def command(config_path: Path, overrides: tuple[str, ...], **options: Any) -> None:
        try:
            function(load_config(config_path, overrides), **options)
        except DualflowError as error:
            click.echo(f"{Path(sys.argv[0]).name}: {error}", err=True)
            sys.exit(error.exit_code)

    return command
