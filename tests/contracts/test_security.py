"""What SECURITY.md promises and no test of a single module covers."""

import ast
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from audit import watched
from fuzz import prepare
from targets import TARGETS

from dualflow.config import TrackingConfig
from dualflow.tracking.mlflow_store import open_store

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "dualflow").rglob("*.py"))


@pytest.mark.parametrize("name", TARGETS)
def test_reading_runs_no_code_and_writes_nothing(tmp_path, name):
    """Models, cards, tables, images and all other data are read without pickle, evaluation, processes or writes."""
    target = TARGETS[name]
    for index, data in enumerate(target.seeds()):
        prepare(target, tmp_path)
        path = tmp_path / target.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        if not index:
            target.read(tmp_path)  # imports modules, whose code is not data
        with watched(tmp_path) as events:
            target.read(tmp_path)
        assert events == []


@pytest.mark.parametrize(
    "code",
    [
        lambda folder: pickle.loads(pickle.dumps(Path)),
        lambda folder: eval("1 + 1"),
        lambda folder: exec("x = 1"),
        lambda folder: subprocess.run(["true"], check=True),
        lambda folder: os.system("true"),
        lambda folder: (folder.parent / "outside").mkdir(),
    ],
)
def test_the_watch_notices_code_and_writes(tmp_path, code):
    """Each of them is an event, so that none means something."""
    folder = tmp_path / "inside"
    folder.mkdir()
    with watched(folder) as events:
        (folder / "file").write_text("allowed")
        code(folder)
    assert len(events) >= 1
    assert not any("inside/file" in event for event in events)


@pytest.mark.slow
def test_workers_listen_on_the_loopback_interface_only():
    """The scheduler and the workers of a local cluster are not reachable from other machines."""
    code = (
        "import psutil\n"
        "from dualflow.workers.local_cluster import local_pool\n"
        "if __name__ == '__main__':\n"
        "    with local_pool(1):\n"
        "        me = psutil.Process()\n"
        "        for process in (me, *me.children(recursive=True)):\n"
        "            for entry in process.net_connections('inet'):\n"
        "                if entry.status == psutil.CONN_LISTEN:\n"
        "                    print('LISTEN', entry.laddr.ip)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    addresses = set(re.findall(r"LISTEN (\S+)", run.stdout))
    assert addresses == {"127.0.0.1"}, run.stderr


def test_services_are_published_on_the_loopback_interface_only():
    """Every port of the compose file is bound to 127.0.0.1, and `make ui` leaves MLflow's default host, 127.0.0.1."""
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    recipe = re.search(r"^ui:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert "--host" not in recipe[1]


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_telemetry_is_off(config_of_a_store, monkeypatch):
    """MLflow is opened with its telemetry disabled."""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    open_store(config_of_a_store)
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()


@pytest.fixture
def config_of_a_store(registry_uri, tmp_path):
    return TrackingConfig(uri=registry_uri, artifacts=tmp_path / "artifacts")


def test_temporary_folders_are_private():
    """Only their owner may read them; no module makes temporary files in another way."""
    with TemporaryDirectory() as folder:
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    imported = {
        alias.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
        if getattr(node, "module", None) == "tempfile" or alias.name == "tempfile"
    }
    assert imported == {"TemporaryDirectory", "gettempdir"}
