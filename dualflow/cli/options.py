"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from dualflow.commands.workflow_files import find_config, packaged_configs

Decorator = Callable[[Any], Any]


def _complete_config(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of packaged configurations, and files."""
    names = [CompletionItem(name) for name in packaged_configs() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def config_option(default: str, variable: str | None = None) -> Decorator:
    """The option `--config` with a default, and an environment variable that replaces the default."""
    return click.option(
        "--config",
        "config_path",
        metavar="FILE",
        callback=lambda _context, _parameter, value: find_config(value),
        shell_complete=_complete_config,
        default=default,
        envvar=variable,
        show_default=True,
        show_envvar=True,
        help="Study configuration: a YAML file, or the name of one that comes with dualflow.",
    )


CONFIG = config_option("quickstart", "DUALFLOW_CONFIG")
OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Replace one value of the configuration; repeatable.",
)
TRACKING = click.option(
    "--tracking",
    "tracking_uri",
    metavar="URI",
    default="sqlite:///results/mlflow.db",
    envvar="MLFLOW_TRACKING_URI",
    show_default=True,
    show_envvar=True,
    help="MLflow store of registered models: a local SQLite file or a server.",
)


def checked_cores(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return the number of cores as Snakemake takes it, which waits for ever for a core if there is none."""
    if value != "all" and not (value.isdecimal() and int(value)):
        raise click.BadParameter(f"'{value}' is not 'all' or a number of at least 1.")
    return value


THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads to use.")
TRAINING_THREADS = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads of each training process.  [default: train.threads]"
)


def command_settings(config_path: Path, overrides: Sequence[str], default: str) -> list[str]:
    """The options that choose a configuration, with `...` for names of files and folders: they may identify people.

    Configurations that come with dualflow keep their names. A resolved configuration, which the workflow passes on, is
    a file like others.
    """
    from dualflow.config import is_private

    packaged = packaged_configs()
    if packaged.get(config_path.stem) == config_path:
        name = config_path.stem
    else:
        name = config_path.name if config_path.name in {file.name for file in packaged.values()} else "..."
    config = [] if name == default else ["--config", name]
    keys = [one.partition("=")[0] for one in overrides]
    shown = [f"{key}=..." if is_private(key) else one for key, one in zip(keys, overrides, strict=True)]
    return [*config, *(word for override in shown for word in ("--set", override))]


def parse_entities(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    """BIDS entities by modality, from `MODALITY.ENTITY=LABEL`; an empty label means a name without the entity."""
    entities: dict[str, dict[str, str]] = {}
    for value in values:
        key, equals, label = value.partition("=")
        modality, dot, entity = key.partition(".")
        if not (equals and dot and modality and entity):
            raise click.BadParameter(f"'{value}' is not of the form MODALITY.ENTITY=LABEL, such as T1w.acq=mprage")
        entities.setdefault(modality, {})[entity] = label
    return entities
