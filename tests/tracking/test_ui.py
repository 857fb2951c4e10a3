"""`dualflow ui` serves the runs on this machine, and nothing of MLflow looks up any other."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from click.testing import CliRunner
from sockets import listening_addresses

from dualflow.cli import main
from dualflow.config import TrackingConfig
from dualflow.tracking import ui
from dualflow.tracking.tracked_run import tracked

ROOT = Path(__file__).parents[2]
VARIABLES = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
# Python runs this file at its start: each look-up of another machine is refused and noted.
GUARD = """
import os, socket
lookup = socket.getaddrinfo

def guarded(host, *arguments, **options):
    if host not in (None, "", "127.0.0.1", "localhost", "::1"):
        with open(os.environ["LOOKUPS"], "a") as stream:
            stream.write(f"{host}\\n")
        raise socket.gaierror(f"{host} is not looked up in a test")
    return lookup(host, *arguments, **options)

socket.getaddrinfo = guarded
"""


@pytest.fixture
def guarded(tmp_path):
    """Environment in which look-ups are noted in the file of LOOKUPS, and MLflow does not know that it is tested."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    hidden = {"PYTHONWARNINGS", "PYTEST_CURRENT_TEST", "CI", *VARIABLES}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    path = os.pathsep.join([str(tmp_path / "guard"), str(ROOT)])
    return environment | {"PYTHONPATH": path, "LOOKUPS": str(tmp_path / "lookups")}


def page(address, process):
    """A page of a server that may still be starting."""
    limit = time.monotonic() + 600
    while True:
        try:
            with urlopen(address, timeout=5) as answer:
                return answer.read().decode()
        except (URLError, ConnectionError, TimeoutError):  # a busy server answers late
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.2)


@pytest.mark.slow
def test_the_pages_are_local_and_look_up_nothing(guarded, tmp_path):
    """The server listens on loopback only, its pages are told to send no telemetry, and the models have a link."""
    store = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=tmp_path / "artifacts")
    with tracked(store, "quickstart", "a model", {}) as run:
        run.view("view")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dualflow.cli", "ui", "--port", str(port)]
    command += ["--set", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=guarded, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        assert page(f"{address}/health", process) == "OK"
        assert '"disable_ui_telemetry":true' in page(f"{address}/ajax-api/3.0/mlflow/ui-telemetry", process)
        assert "<title>MLflow" in page(address, process)
        assert listening_addresses(process.pid) == {"127.0.0.1"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=600)
    assert f"the tracked runs are at {address}" in output
    assert f"the models of quickstart: {address}/#/experiments/1/runs?" in output
    assert not (tmp_path / "lookups").exists(), (tmp_path / "lookups").read_text()


@pytest.mark.slow
def test_tracking_looks_up_nothing(guarded, tmp_path):
    """Neither does a run that is recorded, nor the import alone."""
    code = (
        "from pathlib import Path; from dualflow.config import TrackingConfig\n"
        "from dualflow.tracking.mlflow_store import load_client\nload_client()\n"
        "from dualflow.tracking.tracked_run import tracked\n"
        "with tracked(TrackingConfig(uri='sqlite:///mlflow.db', artifacts=Path('a')), 's', 'r', {}) as run:\n"
        "    run.metrics({'loss': 1.0})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=guarded, check=True)
    assert not (tmp_path / "lookups").exists(), (tmp_path / "lookups").read_text()


def test_a_server_has_its_own_pages():
    """The error names its address, without a password."""
    result = CliRunner().invoke(main, ["ui", "--set", "tracking.uri=http://bob:secret@127.0.0.1:9"])
    assert result.exit_code == 2
    assert "'http://127.0.0.1:9' is a server; open that address in a browser" in result.output


def test_a_database_is_served_without_its_password_on_the_command_line(monkeypatch, tmp_path):
    """The URI is passed in the environment, which other accounts cannot read; background jobs are off."""
    calls = []
    monkeypatch.setattr(ui, "open_store", lambda _config: Mock(get_experiment_by_name=lambda _name: None))
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    uri = "postgresql://person:secret@127.0.0.1/mlflow"
    ui.serve_ui(TrackingConfig(uri=uri, artifacts=tmp_path / "artifacts"), "study", 5000)
    ((_, command, environment),) = calls
    assert "secret" not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_background_jobs_are_off_in_the_container():
    """They take 2 GB of memory."""
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert services["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_telemetry_is_off_outside_of_python():
    """In `make`, in the images, and in each service that runs MLflow."""
    makefile, dockerfile = ((ROOT / name).read_text() for name in ("Makefile", "docker/Dockerfile"))
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    for name in VARIABLES:
        assert f"export {name} := true" in makefile
        assert f"{name}=true" in dockerfile
        assert services["mlflow"]["environment"][name] == services["trainer"]["environment"][name] == "true"
