"""BIDS metadata of an image, from its JSON sidecars by the inheritance principle.

bids2table parses the names. Its `load_bids_metadata` is not used because it ignores files that are not JSON and caches
its results, which could give wrong frame times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bids2table import parse_bids_entities

from dualflow import __version__
from dualflow.errors import DataError
from dualflow.layout import SIDECAR_LEVELS, sidecar_path

MAX_BYTES = 4 << 20
PROGRAM = {"Name": "dualflow", "Version": __version__}
"""This version, as an entry of `GeneratedBy` in BIDS metadata."""


def read_sidecar(path: Path) -> dict[str, Any]:
    """Merged contents of an image's sidecars, the nearest taking precedence; empty without sidecars.

    Raises:
        DataError: a sidecar is not a JSON object.
    """
    merged: dict[str, Any] = {}
    for file in (*_inherited(path), sidecar_path(path)):
        if file.is_file():
            merged |= read_object(file)
    return merged


def _inherited(path: Path) -> Iterator[Path]:
    """Sidecars above or beside an image that apply to it, from the dataset's root down."""
    folders = list(path.parents)[:SIDECAR_LEVELS]
    described = (level for level, folder in enumerate(folders) if (folder / "dataset_description.json").is_file())
    subject = (level + 1 for level, folder in enumerate(folders[:-1]) if folder.name.startswith("sub-"))
    root = next(described, next(subject, None))
    if root is None:  # not a BIDS dataset: only the file beside the image applies
        return
    entities = {name: value for name, value in parse_bids_entities(path).items() if name not in ("datatype", "ext")}
    for folder in reversed(folders[: root + 1]):
        for file in sorted(folder.glob(f"*{entities.get('suffix', '')}.json")):
            inherited = parse_bids_entities(file)
            applies = all(
                entities.get(name) == value for name, value in inherited.items() if name not in ("datatype", "ext")
            )
            if applies and file != sidecar_path(path):
                yield file


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file of one object, such as a sidecar.

    Raises:
        DataError: the file is too large, not JSON, or not an object.
    """
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise DataError(f"{file}: has {size} bytes, expected a sidecar of a few thousand; remove it")
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); make it a readable file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text, expected JSON; save it as UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{file}: is nested too deeply, expected a sidecar; correct or remove it") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds {type(content).__name__}, expected a JSON object; correct or remove it")
    try:
        json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{file}: holds numbers that are not finite, expected JSON; correct or remove it") from error
    return content
