"""Stores that are databases: they are recognised by their URI, and checked once before MLflow opens them."""

import socket
import sys

import pytest
from sqlalchemy.exc import OperationalError

from dualflow.errors import ConfigError
from dualflow.tracking.database import check_connection, is_database, is_remote_database


@pytest.mark.parametrize(
    ("uri", "database", "remote"),
    [
        ("sqlite:///results/mlflow.db", True, False),
        ("postgresql://person@host/mlflow", True, True),
        ("postgresql+psycopg2://person:secret@host:5432/mlflow", True, True),
        ("mysql+pymysql://host/mlflow", True, True),
        ("https://host/postgresql:", False, False),
        ("http://127.0.0.1:5000", False, False),
        ("databricks", False, False),
    ],
)
def test_the_scheme_tells_a_database_from_a_server(uri, database, remote):
    """A SQLite file is a database on this machine."""
    assert (is_database(uri), is_remote_database(uri)) == (database, remote)


def test_a_missing_driver_is_a_configuration_error(monkeypatch):
    """The error names the driver and its package, and has no password."""
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(ConfigError, match=r"'psycopg2' is not installed; .*pip install psycopg2-binary") as raised:
        check_connection("postgresql://person:secret@127.0.0.1/mlflow")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("uri", ["postgresql+other://person:secret@host/db", "postgresql://person@host:secret/db"])
def test_a_uri_that_cannot_be_read_is_a_configuration_error(uri):
    """No later attempt could succeed."""
    with pytest.raises(ConfigError, match=r"tracking\.uri = .* expected DATABASE://.*; write") as raised:
        check_connection(uri)
    assert "secret" not in str(raised.value)


def test_an_unreachable_database_fails_at_once():
    """It is no configuration error, because a later attempt may succeed."""
    pytest.importorskip("psycopg2")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(OperationalError):
        check_connection(f"postgresql://person:secret@127.0.0.1:{port}/mlflow")


def test_a_database_that_answers_passes(tmp_path):
    """The check leaves no connection open."""
    check_connection(f"sqlite:///{tmp_path}/store.db")
