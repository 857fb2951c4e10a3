"""What a page without other files needs: files as data URIs, and digests of the scripts that it allows."""

from __future__ import annotations

import base64
import hashlib


def data_uri(data: bytes, kind: str) -> str:
    """Content of a file of MIME type `kind` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def script_digest(script: str) -> str:
    """SHA-256 of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
