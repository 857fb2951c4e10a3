"""Description of a tracked run: as much of its results as every MLflow server accepts."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARACTERS = 4500
"""Characters that every MLflow server accepts as a description."""


def run_description(parts: Sequence[str], file: str) -> str:
    """Return the first of `parts` that fit, without the spaces that align tables, and a note on the rest.

    Args:
        parts: Markdown, the most important part first.
        file: artifact of the run that has everything.
    """
    note, shown = f"The file {file} of this run has all results.", ""
    for part in parts:
        text = shown + re.sub(" {2,}", " ", re.sub("-{4,}", "---", part)) + "\n\n"
        if len(text) + len(note) > MAX_CHARACTERS:
            break
        shown = text
    return f"{shown}{note}\n"
