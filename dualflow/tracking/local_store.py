"""Creation of a local MLflow store: a SQLite file that is complete or absent, even if the process is killed."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from dualflow.commit import committing
from dualflow.temporaries import sweep_beside

LOCK_SECONDS = 120
_SIDE_FILES = ("-journal", "-wal", "-shm")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def ensure_local_store(path: Path, artifacts: Path) -> None:
    """Create the store if it does not exist; set a broken one aside first, with a warning.

    Args:
        path: SQLite file.
        artifacts: folder of the default experiment's artifacts.

    Raises:
        CommitError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that create the tables of one file at the same time corrupt it.
    with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
        problem = store_problem(path) if path.exists() else ""
        if path.exists() and not problem:
            return
        aside = _set_aside(path)
        if problem:
            print(f"warning: {path}: {problem}; it is set aside as {aside} and a new store is made", file=sys.stderr)
        sweep_beside(path)
        with committing(path) as temp:
            _create(temp, artifacts)


def store_problem(path: Path) -> str:
    """Why a SQLite file cannot serve as a store, such as `its creation was interrupted`; empty if it can.

    A file that is locked or unreadable at the moment is no broken store. Neither is one of an older MLflow that holds
    records: MLflow upgrades it, or says how to.
    """
    try:
        # Opened for writing, because the journal of a killed process is rolled back first.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=1, uri=True)) as connection:
            return _schema_problem(connection) or _page_problem(connection)
    except sqlite3.OperationalError:
        return ""
    except sqlite3.DatabaseError as error:
        return str(error) if error.sqlite_errorcode & 0xFF in _DAMAGED else ""


def _schema_problem(connection: sqlite3.Connection) -> str:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return "it has no tables"
    if "experiments" not in tables:
        return ""  # the database of another program
    revisions = _rows(connection, "alembic_version") if "alembic_version" in tables else []
    if not revisions:
        return "it has no schema version"
    # The creation of a store ends with its default experiment.
    if not connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchall():
        return "its creation was interrupted"
    missing = sorted(_expected_tables() - tables)
    if missing and revisions == [(_latest_revision(),)]:
        return f"its table {missing[0]} is missing"
    return ""


def _page_problem(connection: sqlite3.Connection) -> str:
    """What is wrong with the first damaged page, which a query may not touch for weeks; 15 ms per MB of records."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return "" if verdict == "ok" else f"it is damaged ({str(verdict).splitlines()[-1]})"


def _rows(connection: sqlite3.Connection, table: str) -> list[Any]:
    return connection.execute(f"SELECT * FROM {table}").fetchall()


def _expected_tables() -> set[str]:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - defines the tables
    from mlflow.store.db.base_sql_model import Base

    return set(Base.metadata.tables)


def _latest_revision() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _set_aside(path: Path) -> Path:
    """Rename a database and its side files; return the new path."""
    number = next(n for n in count(1) if not list(path.parent.glob(f"{path.name}.broken-{n}*")))
    aside = path.with_name(f"{path.name}.broken-{number}")
    # The side files come first: SQLite would apply a journal that is left behind to the new database.
    for suffix in (*_SIDE_FILES, ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def _create(path: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with _unsynchronised(path):
        store = SqlAlchemyStore(f"sqlite:///{path}", str(artifacts.resolve()))
        store.engine.dispose()


@contextmanager
def _unsynchronised(path: Path) -> Iterator[None]:
    """Write the database `path` without flushing each statement: MLflow's migrations take five times as long with it.

    The journal stays in memory, so that no file beside the database is left behind.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def configure(connection: Any, _record: object) -> None:
        if Path(connection.execute("PRAGMA database_list").fetchone()[2]) == path.resolve():
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", configure)
    try:
        yield
    finally:
        event.remove(Engine, "connect", configure)
