"""Digests of files and values, and file names that a digest keeps apart."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def ascii_name(text: str, other: str) -> str:
    """A text as part of a file's name: `other` takes the place of all but ASCII letters and digits.

    A digest follows if that loses more than spaces, underscores and `=`, so that `A+` and `A-` keep names of their own.
    """
    name = re.sub("[^A-Za-z0-9]+", other, text)
    return name if re.fullmatch("[A-Za-z0-9 _=]*", text) else f"{name}{digest_of(text)[:8]}"
