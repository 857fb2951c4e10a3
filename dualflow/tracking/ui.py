"""MLflow's pages of the tracked runs, on this machine alone."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from dualflow.config import TrackingConfig
from dualflow.errors import ConfigError
from dualflow.tracking.mlflow_store import PRIVATE, open_store

HOST = "127.0.0.1"


def serve_ui(config: TrackingConfig, port: int) -> NoReturn:
    """Replace this process by MLflow's server, without telemetry.

    Raises:
        ConfigError: the runs are on a server, which has its own pages.
    """
    if not config.uri.startswith("sqlite:"):
        raise ConfigError(f"tracking.uri = {config.uri!r} is a server; open that address in a browser")
    open_store(config)  # MLflow's server would create a missing file in place
    print(f"the tracked runs are at http://{HOST}:{port}; Ctrl-C ends the server", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", config.uri, "--default-artifact-root", str(config.artifacts.resolve())]
    os.execve(sys.executable, command, {**os.environ, **PRIVATE})
