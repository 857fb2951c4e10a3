"""Files as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64


def data_uri(data: bytes, kind: str) -> str:
    """Content of a file of MIME type `kind` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
