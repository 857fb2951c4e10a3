"""The commit of the code that a run used."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from dualflow import __version__

WAIT_S = 10
VERSION = "dualflow.version"
"""Tag of the version of dualflow."""
COMMIT = "mlflow.source.git.commit"
"""Tag of the commit, which MLflow shows."""
COMMIT_VARIABLE = "DUALFLOW_COMMIT"
"""Environment variable with the commit of an installed package, which the images of docker/Dockerfile set."""


@cache
def source_version(package: Path = Path(__file__).parents[1]) -> dict[str, str]:
    """Tags with the version of dualflow and its git commit: that of its checkout, or without one COMMIT_VARIABLE.

    An installed package may lie in another project's checkout, whose commit would mislead, so the commit counts only if
    the package's files are tracked. Code that differs from its commit has `-dirty` after it, as in `git describe`.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD") + ("-dirty" if _git(package, "status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        commit = os.environ.get(COMMIT_VARIABLE, "")
    return {VERSION: __version__} | ({COMMIT: commit} if commit else {})


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout.strip()
