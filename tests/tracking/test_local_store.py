"""A local store is complete or absent, whenever the process that creates it is killed; a broken one is replaced."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from dualflow.config import TrackingConfig
from dualflow.tracking.local_store import ensure_local_store, store_problem
from dualflow.tracking.mlflow_store import RunKey, open_run

pytestmark = pytest.mark.slow

# Each child process is killed when it calls one function, a moment of the creation. It creates the store in a folder
# of that name.
KILLED = """
import os, signal
from pathlib import Path
import alembic.operations.ops as operations
import mlflow.store.db.utils as schema
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from dualflow.tracking.local_store import ensure_local_store

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

moments = {
    "first tables": (schema, "_upgrade_db"),
    "migration": (operations.AddColumnOp, "add_column"),
    "default experiment": (SqlAlchemyStore, "_initialize_store_state"),
    "rename": (Path, "replace"),
}
for moment, (owner, name) in moments.items():
    child = os.fork()
    if not child:
        setattr(owner, name, kill)
        ensure_local_store(Path(moment, "mlflow.db"), Path(moment, "artifacts"))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""
MOMENTS = ("first tables", "migration", "default experiment", "rename")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder with one folder for each moment at which a creation was killed."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A complete store."""
    path = tmp_path_factory.mktemp("complete") / "mlflow.db"
    ensure_local_store(path, path.parent / "artifacts")
    return path


@pytest.fixture
def store(complete, tmp_path):
    """A copy of a complete store."""
    return shutil.copy(complete, tmp_path / "mlflow.db")


def execute(path, *statements):
    """Execute SQL statements on a database."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def empty(path):
    """Leave a file without content."""
    path.write_bytes(b"")


def no_database(path):
    """Leave a file that is no database."""
    path.write_text("no database" * 1000)


def no_version(path):
    """Leave the tables that an interrupted creation made first."""
    path.unlink()
    execute(path, "CREATE TABLE experiments (experiment_id INTEGER)")


def half_migrated(path):
    """Leave an interrupted creation between two migrations."""
    execute(path, "DELETE FROM experiments", "UPDATE alembic_version SET version_num = '451aebb31d03'")


def table_missing(path):
    """Leave a store of the latest schema without one of its tables."""
    execute(path, "DROP TABLE registered_models")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_during_the_creation_leaves_no_store(killed, moment, capsys):
    """The next process creates it and removes the leftovers."""
    path = killed / moment / "mlflow.db"
    assert not path.exists()
    ensure_local_store(path, path.parent / "artifacts")
    assert not store_problem(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["mlflow.db", "mlflow.lock"]
    assert "warning:" not in capsys.readouterr().err


def page_lost(path):
    """Overwrite the page of the table of metrics, which opening the store does not read."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'metrics'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(b"\xff" * size)


@pytest.mark.parametrize("damage", [empty, no_database, no_version, half_migrated, table_missing, page_lost])
def test_a_broken_store_is_set_aside(store, damage, tmp_path, capsys):
    """It keeps its content under another name, with its journal; one warning names it; the new store takes runs."""
    damage(store)
    content = store.read_bytes()
    (tmp_path / "mlflow.db-journal").write_bytes(b"")
    (tmp_path / "mlflow.db.broken-1").write_text("an earlier one")
    config = TrackingConfig(uri=f"sqlite:///{store}", artifacts=tmp_path / "artifacts")
    client, run_id = open_run(config, RunKey("study", "run", {}))
    assert client.get_run(run_id).info.run_name == "run"
    assert (tmp_path / "mlflow.db.broken-2").read_bytes() == content
    assert not (tmp_path / "mlflow.db-journal").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert line.startswith(f"warning: {store}: ")
    assert line.endswith(f"; it is set aside as {tmp_path}/mlflow.db.broken-2 and a new store is made")


@pytest.mark.parametrize(
    "statements",
    [
        [],
        ["DROP TABLE registered_models", "UPDATE alembic_version SET version_num = '451aebb31d03'"],
        ["DROP TABLE experiments"],
    ],
    ids=["complete", "older MLflow", "another program"],
)
def test_a_store_in_use_is_kept(store, statements, tmp_path, capsys):
    """A complete store, one of an older MLflow that holds records, and the database of another program."""
    execute(store, *statements)
    ensure_local_store(store, tmp_path / "artifacts")
    assert "warning:" not in capsys.readouterr().err
    assert not list(tmp_path.glob("*.broken-*"))


def test_a_locked_store_is_kept(store, tmp_path):
    """A lock passes; so does a full disk."""
    with closing(sqlite3.connect(store)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        ensure_local_store(store, tmp_path / "artifacts")
    assert not list(tmp_path.glob("*.broken-*"))
