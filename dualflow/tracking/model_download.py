"""Download of registered models into a cache, from which they are used while the server is unreachable.

The cache is `$XDG_CACHE_HOME/dualflow` (by default `~/.cache/dualflow`): bundles under the digest of their record, and
the version that each URI last resolved to. It can be removed at any time.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from dualflow.commit import commit_json, committing_folder
from dualflow.config import public_uri
from dualflow.digests import digest_of, sha256
from dualflow.errors import CheckpointError, ConfigError, DualflowError
from dualflow.tracking.deadline import with_deadline
from dualflow.tracking.mlflow_calls import is_permanent_error
from dualflow.tracking.mlflow_store import open_store
from dualflow.tracking.model_registry import (
    BUNDLE_FOLDER,
    BUNDLE_INDEX,
    BUNDLE_TAG,
    check_name,
    reason,
    tracking_config,
)

SCHEME = "models:/"
MAX_FILES, MAX_BYTES = 32, 32 << 30
"""Largest number of files, and of bytes, of a version that is downloaded."""
_DIGEST = re.compile(r"^[0-9a-f]{64}$")

Verify = Callable[[Path], object]
"""Checks a bundle; raises CheckpointError."""


@dataclass(frozen=True)
class ModelUri:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Attributes:
        name: name of the registered model.
        alias: alias of a version; empty if the version is given.
        version: number of the version; empty if an alias is given.
    """

    name: str
    alias: str = ""
    version: str = ""

    @classmethod
    def parse(cls, uri: str) -> ModelUri:
        """Read a URI.

        Raises:
            ConfigError: it has another form.
        """
        match = re.fullmatch(r"models:/([^/@]+)(?:@([A-Za-z0-9_-]+)|/([0-9]+))", uri)
        if match is None:
            raise ConfigError(
                f"'{uri}' names no version of a model; expected models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        check_name(match[1])
        return cls(match[1], match[2] or "", match[3] or "")


@dataclass(frozen=True)
class Resolution:
    """What a URI resolved to.

    Attributes:
        version: number of the version.
        bundle: digest of its bundle.
        day: day of the resolution, as YYYY-MM-DD.
    """

    version: str
    bundle: str
    day: str


def is_model_uri(model: str) -> bool:
    """Whether a text names a registered model instead of a folder."""
    return model.startswith(SCHEME)


def download_model(uri: str, tracking_uri: str, verify: Verify) -> Path:
    """Return the folder of a registered model, downloaded unless it is in the cache.

    If the server is unreachable, the version that the URI last resolved to is used with a warning.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: MLflow tracking URI: a local SQLite file or a server.
        verify: checks the files of a bundle.

    Raises:
        ConfigError: a URI cannot be used.
        CheckpointError: there is no such model, it does not verify, or the server is unreachable and the model is not
            in the cache.
    """
    model = ModelUri.parse(uri)
    memory = cache_folder() / "resolved" / f"{digest_of([tracking_uri, uri])}.json"
    try:
        client = _connect(tracking_uri)
        resolution = _resolve(client, model, uri)
        folder = _cached(resolution, verify) or _download(client, model, resolution, verify)
    except DualflowError:
        raise
    except Exception as error:
        if is_permanent_error(error):
            raise CheckpointError(
                f"{uri}: MLflow at {public_uri(tracking_uri)} has no such model ({reason(error)}); check the name, "
                "or register one with `dualflow publish`"
            ) from error
        return _offline(uri, tracking_uri, memory, verify, error)
    commit_json(memory, {"uri": uri, **resolution.__dict__})
    return folder


def cache_folder() -> Path:
    """Folder of the cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is invalid by the XDG standard.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "dualflow"


def _connect(tracking_uri: str) -> Any:
    config = tracking_config(tracking_uri)
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).is_file():
        raise ConnectionError("there is no such file")  # reading must not create a store
    return open_store(config)


def _resolve(client: Any, model: ModelUri, uri: str) -> Resolution:
    version = (
        client.get_model_version_by_alias(model.name, model.alias)
        if model.alias
        else client.get_model_version(model.name, model.version)
    )
    digest = version.tags.get(BUNDLE_TAG, "")
    if not _DIGEST.match(digest):
        raise CheckpointError(
            f"{uri}: version {version.version} is no dualflow model (it has no tag {BUNDLE_TAG}); choose a version "
            "that `dualflow publish` registered"
        )
    return Resolution(str(version.version), digest, date.today().isoformat())


def _bundle_folder(resolution: Resolution) -> Path:
    return cache_folder() / "models" / resolution.bundle


def _cached(resolution: Resolution, verify: Verify) -> Path | None:
    """The cached bundle; None if it is absent or damaged."""
    folder = _bundle_folder(resolution)
    try:
        _verify_digest(folder, resolution)
        verify(folder)
    except (CheckpointError, OSError):
        return None
    return folder


def _download(client: Any, model: ModelUri, resolution: Resolution, verify: Verify) -> Path:
    from mlflow.artifacts import download_artifacts, list_artifacts

    source = f"{client.get_model_version_download_uri(model.name, resolution.version)}/{BUNDLE_FOLDER}"
    files = with_deadline(partial(list_artifacts, artifact_uri=source))
    sizes = {file.path.rpartition("/")[2]: file.file_size or 0 for file in files}
    size = sum(sizes.values())
    if any(file.is_dir for file in files) or len(files) > MAX_FILES or size > MAX_BYTES or BUNDLE_INDEX not in sizes:
        raise CheckpointError(
            f"{model.name} version {resolution.version}: has {len(files)} files with {size:,} bytes, expected the "
            "files of a bundle; publish the model again"
        )
    folder = _bundle_folder(resolution)
    print(f"downloading {model.name} version {resolution.version}, {size / 1e6:.0f} MB, to {folder}", file=sys.stderr)
    with committing_folder(folder) as temp:
        for name, file_size in sizes.items():
            with_deadline(partial(download_artifacts, artifact_uri=f"{source}/{name}", dst_path=str(temp)), file_size)
        _verify_digest(temp, resolution)
        verify(temp)
    return folder


def _verify_digest(folder: Path, resolution: Resolution) -> None:
    if sha256(folder / BUNDLE_INDEX) != resolution.bundle:
        raise CheckpointError(
            f"{folder / BUNDLE_INDEX}: does not match the digest that was registered for version {resolution.version}; "
            "publish the model again"
        )


def _offline(uri: str, tracking_uri: str, memory: Path, verify: Verify, error: Exception) -> Path:
    """The version that a URI last resolved to, with a warning."""
    problem = f"MLflow at {public_uri(tracking_uri)} does not answer ({reason(error)})"
    try:
        values = json.loads(memory.read_text())
        resolution = Resolution(*(str(values[key]) for key in ("version", "bundle", "day")))
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{uri}: {problem}, and this machine has not used the model before; start the server, or name a folder"
        ) from error
    folder = _cached(resolution, verify) if _DIGEST.match(resolution.bundle) else None
    if folder is None:
        raise CheckpointError(f"{uri}: {problem}, and its copy in {cache_folder()} is missing or damaged") from error
    print(
        f"WARNING: {problem}. Using version {resolution.version} from the cache, which {uri} named on "
        f"{resolution.day}; it may name another version by now.",
        file=sys.stderr,
    )
    return folder
