"""MLflow's pages of the tracked runs, on this machine alone."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from dualflow.config import TrackingConfig, public_uri
from dualflow.errors import ConfigError
from dualflow.tracking.database import is_database
from dualflow.tracking.mlflow_store import PRIVATE, open_store
from dualflow.tracking.saved_view import TAG, view_link

HOST = "127.0.0.1"
_ENVIRONMENT = {**PRIVATE, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Also without MLflow's background jobs, which dualflow does not use and which take 2 GB of memory."""


def serve_ui(config: TrackingConfig, experiment: str, port: int) -> NoReturn:
    """Replace this process by MLflow's server, without telemetry.

    Args:
        config: URI and artifact folder of the MLflow store.
        experiment: name of the experiment whose models are linked.
        port: port of the server.

    Raises:
        ConfigError: the runs are on a server, which has its own pages.
    """
    if not is_database(config.uri):
        raise ConfigError(f"tracking.uri = {public_uri(config.uri)!r} is a server; open that address in a browser")
    client = open_store(config)  # MLflow's server would create a missing file in place
    address = f"http://{HOST}:{port}"
    if (tracked := client.get_experiment_by_name(experiment)) is not None and TAG in tracked.tags:
        print(f"the models of {experiment}: {view_link(address, tracked.experiment_id)}")
    print(f"the tracked runs are at {address}; Ctrl-C ends the server", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
    command += ["--default-artifact-root", str(config.artifacts.resolve())]
    # A URI may have a password, which a command line would show to other accounts.
    os.execve(sys.executable, command, {**os.environ, **_ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": config.uri})
