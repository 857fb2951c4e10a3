"""The one way a file becomes real: temp beside it, flush, verify, rename, manifest last.

A reader therefore sees the old file, the new file, or none - never a part. "Done" is a manifest whose
hashes verify, not a file that exists: see `write_manifest` and `read_manifest`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from dualflow import __version__
from dualflow.errors import CommitError

TEMP_PREFIX = ".tmp-"
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""This machine in names of temporary files: a process number means nothing on another that shares the folder."""
_STALE_S = 24 * 3600.0
_CHUNK = 1 << 20


@contextmanager
def committing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` with the same suffixes; on a clean exit make it real.

    The temporary file is flushed to disk, checked (not empty, gzip stream intact, JSON and safetensors headers
    parse) and renamed over `path`. On an error nothing at `path` changes and the temporary file is removed.

    Raises:
        CommitError: the block wrote nothing, or what it wrote does not verify, or the disk refused it.
    """
    path = Path(path)
    temp = path.with_name(f"{TEMP_PREFIX}{HOST}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        _fsync(temp)
        _verify(temp)
        temp.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise CommitError(
            f"{path}: cannot be written ({error.strerror or error}); free space or change the output folder"
        ) from error
    finally:
        with suppress(OSError):  # where the folder itself cannot be, there is nothing to remove
            temp.unlink(missing_ok=True)


def commit_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with committing(path) as temp:
        temp.write_bytes(data)


def commit_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    commit_bytes(path, text.encode())


def commit_json(path: Path | str, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys, atomically; NaN is refused, for it is not JSON."""
    commit_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=str) + "\n")


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


def write_manifest(
    path: Path | str,
    *,
    step: str,
    outputs: Mapping[str, Path],
    inputs: Mapping[str, str],
    config: Any,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Record that `step` is done: its outputs (relative to the manifest) with their hashes, and what they came from.

    Args:
        path: the manifest, written last.
        step: name of the finished work.
        outputs: name -> file made by this step.
        inputs: name -> hash of what it was made from.
        config: the part of the configuration the step depends on.
        facts: small results worth keeping; they must not hold clock times, so that equal work gives equal bytes.
    """
    path = Path(path)
    commit_json(
        path,
        {
            "step": step,
            "version": __version__,
            "config": config,
            "inputs": dict(inputs),
            "outputs": {
                name: {"path": os.path.relpath(file, path.parent), "sha256": sha256(file)}
                for name, file in outputs.items()
            },
            "facts": dict(facts or {}),
        },
    )


def read_manifest(
    path: Path | str, *, inputs: Mapping[str, str] | None = None, config: Any = None
) -> dict[str, Any] | None:
    """Return the manifest at `path` if it is whole and its outputs verify, else None.

    With `inputs` or `config` given, a manifest made from other inputs, another configuration or another version of
    dualflow does not count either: the work has to be done again.
    """
    path = Path(path)
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        for entry in manifest["outputs"].values():
            if sha256(path.parent / entry["path"]) != entry["sha256"]:
                return None
        if inputs is not None and manifest["inputs"] != dict(inputs):
            return None
        if config is not None and (
            digest_of(manifest["config"]) != digest_of(config) or manifest["version"] != __version__
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest


def forget_broken(folder: Path) -> list[str]:
    """Remove manifests under `folder` whose outputs no longer verify, and those that rest on them; return their names.

    Snakemake sees only the manifest: without it, the step is done again.
    """
    forgotten = []
    while broken := [path for path in sorted(folder.rglob("*.json")) if read_manifest(path) is None]:
        for path in broken:
            path.unlink()
            forgotten.append(str(path.relative_to(folder).with_suffix("")))
    return forgotten


def sweep_temporaries(folder: Path | str) -> int:
    """Remove temporary files under `folder` whose writing process is gone; return how many.

    Those of another machine, whose processes cannot be seen, go when they are a day old.
    """
    removed = 0
    for temp in Path(folder).rglob(f"{TEMP_PREFIX}*"):
        host, _, rest = temp.name.removeprefix(TEMP_PREFIX).partition("-")
        pid = rest.partition("-")[0]
        if pid.isdigit() and not (_alive(int(pid)) if host == HOST else _recent(temp)):
            temp.unlink(missing_ok=True)
            removed += 1
    return removed


def _recent(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _STALE_S
    except OSError:  # made real, or removed by another
        return True


def _alive(pid: int) -> bool:
    try:
        # In a container nobody may collect the processes whose parent was killed.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify_gzip(path: Path) -> None:
    with gzip.open(path, "rb") as stream:
        while stream.read(_CHUNK):
            pass


def _verify_json(path: Path) -> None:
    json.loads(path.read_text())


def _verify_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError("the tensor data is cut short")


_VERIFIERS: dict[str, Callable[[Path], None]] = {
    ".gz": _verify_gzip,
    ".json": _verify_json,
    ".safetensors": _verify_safetensors,
}


def _verify(path: Path) -> None:
    if path.stat().st_size == 0:
        raise CommitError(f"{path.name}: nothing was written; refusing to commit an empty file")
    verifier = _VERIFIERS.get(path.suffix)
    if verifier is None:
        return
    try:
        verifier(path)
    except (ValueError, KeyError, EOFError, gzip.BadGzipFile) as error:
        raise CommitError(f"{path.name}: what was written does not verify ({error}); nothing was committed") from error
