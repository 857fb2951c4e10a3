"""URIs of MLflow's stores, which may hold a password."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit


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
