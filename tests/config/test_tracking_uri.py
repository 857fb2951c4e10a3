"""URIs of MLflow's stores."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from dualflow.config import parse_config, public_uri, tracking_uri
from dualflow.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://user:secret@host:5000/x@y/", "http://host:5000/x@y/"),
        ("https://host/mlflow?token=secret", "https://host/mlflow"),
        ("http://user:secret/@host", "http://..."),
        ("postgresql://mlflow:sec/ret?@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://mlflow:secret@secret/secret@host/db", "postgresql://host/db"),
        ("postgresql://host/db?user=u@realm&password=secret", "postgresql://host/db"),
        ("postgresql+psycopg2://mlflow:secret@[::1]/db", "postgresql+psycopg2://[::1]/db"),
        ("postgresql://host:secret/db", "postgresql://..."),
        ("no-scheme://user:secret@host", "no-scheme://..."),
        ("databricks", "databricks"),
    ],
)
def test_a_uri_is_shown_without_credentials(uri, shown):
    """Whatever characters a password has that SQLAlchemy accepts; what it cannot read is not shown."""
    assert public_uri(uri) == shown


def tracking_uri_of(uri):
    return parse_config({"study": {"name": "mine"}, "tracking": {"uri": uri}}).tracking.uri


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///results/mlflow.db",
        "sqlite:////a folder/mlflow.db",
        "sqlite+pysqlite:///mlflow.db?timeout=60",
        "postgresql://person@host:5432/mlflow",
        "postgresql+psycopg2://person:sec/ret@/mlflow?host=/tmp",
        "mysql+pymysql://host/mlflow",
        "mssql+pyodbc://person:secret@host/mlflow?driver=ODBC+Driver+17+for+SQL+Server",
        "http://127.0.0.1:5000",
        "https://person:secret@mlflow_server/path/",
        "databricks",
        "databricks://profile",
    ],
)
def test_a_store_that_mlflow_opens_is_accepted(uri):
    assert tracking_uri_of(uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "file:///somewhere",
        "./mlruns",
        "/somewhere/mlruns",
        "mlruns",
        "",
        "htp://127.0.0.1:5000",
        "http:/127.0.0.1",
        "http://",
        "sqlite://results/mlflow.db",
        "sqlite:///mlflow.db?timeout=60",
        "sqlite:///:memory:",
        "sqlite:///results/",
        "sqlite:///",
        "postgres://host/mlflow",
        "postgresql:/host/mlflow",
    ],
)
def test_a_store_that_mlflow_cannot_open_is_refused(uri):
    """Before a training: no later attempt could succeed."""
    with pytest.raises(
        ConfigError, match=r"tracking\.uri = .*expected sqlite:///FILE or a server.*; .* write"
    ) as error:
        tracking_uri_of(uri)
    assert repr(uri) in str(error.value)


@pytest.mark.parametrize("uri", ["htp://person:secret@host", "http://person:secret/word@host", "http://host:secret"])
def test_the_refusal_of_a_uri_has_no_password(uri):
    with pytest.raises(ConfigError) as error:
        tracking_uri_of(uri)
    assert "secret" not in str(error.value)


def test_stores_of_a_plugin_are_accepted(monkeypatch):
    """MLflow finds them by the same entry points."""
    plugin = EntryPoint("azureml", "module:store", "mlflow.tracking_store")
    monkeypatch.setattr(tracking_uri, "entry_points", lambda **group: EntryPoints([plugin]).select(**group))
    assert tracking_uri_of("azureml://region/workspace")
    with pytest.raises(ConfigError):
        tracking_uri_of("azure://region/workspace")
