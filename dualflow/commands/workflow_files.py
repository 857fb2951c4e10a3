"""Location of the workflow's files: Snakefile, pipelines/ and configs/.

A checkout uses the files at its top level; a wheel carries them as `dualflow/_workflow`.
"""

from __future__ import annotations

import re
from pathlib import Path

import dualflow
from dualflow.errors import ConfigError

PACKAGE = Path(dualflow.__file__).parent
BARE_NAME = re.compile(r"[A-Za-z0-9_-]+")


def workflow_root() -> Path:
    """Folder that holds the Snakefile of this installation.

    Raises:
        ConfigError: the installation has no workflow.
    """
    for folder in (PACKAGE.parent, PACKAGE / "_workflow"):
        if (folder / "Snakefile").is_file() and (folder / "pipelines").is_dir():
            return folder
    raise ConfigError(f"{PACKAGE}: this installation has no workflow files; install dualflow again with pip")


def packaged_configs() -> dict[str, Path]:
    """Configurations that come with dualflow: bare name -> file."""
    return {file.stem: file for file in sorted((workflow_root() / "configs").glob("*.yaml"))}


def find_config(value: str) -> Path:
    """The configuration that `value` names: an existing file, or the bare name of a packaged one.

    Raises:
        ConfigError: a bare name is neither.
    """
    path = Path(value)
    if path.is_file() or not BARE_NAME.fullmatch(value):
        return path  # load_config reports a file that cannot be read
    configs = packaged_configs()
    if value not in configs:
        raise ConfigError(f"no configuration '{value}'; name a YAML file, or one of: {', '.join(configs)}")
    return configs[value]
