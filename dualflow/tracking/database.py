"""Tracking stores that a process opens as a database by its URI, without a server of MLflow's."""

from __future__ import annotations

import re

from dualflow.config import public_uri
from dualflow.errors import ConfigError
from dualflow.tracking.deadline import with_deadline

_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")


def is_database(uri: str) -> bool:
    """Whether the store is a database or a SQLite file, so that artifacts are files of this machine."""
    return _DATABASE.match(uri) is not None


def is_remote_database(uri: str) -> bool:
    """Whether the store is a database with a server of its own, such as PostgreSQL."""
    return is_database(uri) and not uri.startswith("sqlite:")


def check_connection(uri: str) -> None:
    """Connect to a database once. MLflow retries for minutes, and creates tables that must not be interrupted.

    Raises:
        ConfigError: the URI cannot be read, or the driver of the database is not installed.
        TimeoutError: the database does not answer.
        Exception: any error of the database.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(uri, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracking.uri: the database driver '{error.name}' is not installed; for PostgreSQL, "
            "`pip install psycopg2-binary`"
        ) from error
    except (ArgumentError, ValueError) as error:  # a driver that SQLAlchemy does not know, a port that is no number
        raise ConfigError(
            f"tracking.uri = {public_uri(uri)!r}: SQLAlchemy cannot read it, expected "
            "DATABASE://USER:PASSWORD@HOST:PORT/NAME; write special characters of the password as %40 for @"
        ) from error
    with_deadline(lambda: engine.connect().close())
