"""URIs of MLflow's stores: their forms, and how they are shown, for they may hold a password."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from urllib.parse import urlsplit, urlunsplit

from dualflow.errors import ConfigError

_FORMS = re.compile(
    r"sqlite:///(?!:memory:)[^?]*[^?/]"  # dualflow creates the file itself, without options
    r"|(sqlite\+\w+|(postgresql|mysql|mssql)(\+\w+)?)://.*"
    r"|databricks(://.*)?"
)
"""URIs that MLflow can open, beside those of servers and of plugins."""


def usable_uri(uri: str) -> str:
    """Return a tracking URI whose scheme and form MLflow can open.

    Raises:
        ConfigError: MLflow cannot open it.
    """
    if _FORMS.fullmatch(uri) or _is_server(uri) or _is_of_plugin(uri):
        return uri
    raise ConfigError(
        "expected sqlite:///FILE or a server's http(s), postgresql, mysql or mssql URL; for a file on this machine, "
        "write sqlite:///results/mlflow.db, with three slashes and without options"
    )


def _is_server(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        return False


def _is_of_plugin(uri: str) -> bool:
    """Whether an installed package adds stores of this scheme to MLflow."""
    scheme, colon, _ = uri.partition("://")
    return bool(colon) and scheme in entry_points(group="mlflow.tracking_store").names


def public_uri(uri: str) -> str:
    """A tracking URI without user name, password and options, among which a password may be."""
    scheme, colon, _ = uri.partition("://")
    if not colon or scheme == "sqlite":
        return uri
    try:
        return _server(uri) if scheme.lower() in ("http", "https") else _database(uri)
    except ValueError:  # it cannot be opened, and any part of it may be the password
        return f"{scheme}://..."


def _server(uri: str) -> str:
    parts = urlsplit(uri)
    _ = parts.port  # raises ValueError if it is no number
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _database(uri: str) -> str:
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(uri)
    except ArgumentError as error:
        raise ValueError(uri) from error
    shown = URL.create(parts.drivername, host=parts.host, port=parts.port, database=parts.database).render_as_string()
    return re.sub("//.*@", "//", shown)  # of a password with an `@` that is not written as %40
