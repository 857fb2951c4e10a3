"""URIs of MLflow's stores."""

import pytest

from dualflow.config import public_uri


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
