"""Manifests: one JSON file per finished step, with the digests of its inputs and outputs.

A step is done when its manifest exists and its outputs still have the digests recorded there. The existence
of an output is not enough: it may be incomplete or come from another run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dualflow import __version__
from dualflow.commit import commit_json
from dualflow.digests import digest_of, sha256
from dualflow.errors import CommitError
from dualflow.layout import sidecar_path
from dualflow.revisions import REVISIONS
from dualflow.temporaries import TEMP_PREFIX

TRANSIENT = "may_pass"
"""Key, as stored, in the facts of a step that failed for a reason that may pass, such as a disk that is away."""


class OutputFile(NamedTuple):
    """A file that a manifest lists.

    Attributes:
        path: path of the file.
        sha256: its digest when the step finished.
    """

    path: Path
    sha256: str


class DigestCache:
    """SHA-256 digests of files within one process.

    A file is hashed again only when its inode, size or modification time has changed.
    """

    def __init__(self) -> None:
        self._digests: dict[str, tuple[tuple[int, int, int], str]] = {}

    def sha256(self, path: Path) -> str:
        """Return the hex SHA-256 of a file.

        Raises:
            OSError: the file cannot be read.
        """
        key, status = os.path.abspath(path), path.stat()  # noqa: PTH100 - removes `..`, which Path.absolute keeps
        state = status.st_ino, status.st_size, status.st_mtime_ns
        known_state, digest = self._digests.get(key, (None, ""))
        if known_state != state:
            digest = sha256(path)
            self._digests[key] = state, digest
        return digest


def write_manifest(
    path: Path | str,
    *,
    step: str,
    outputs: Mapping[str, Path],
    inputs: Mapping[str, str],
    config: Any,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Record that a step is done, with the digests of its outputs.

    Args:
        path: the manifest; it is written last.
        step: name of the step.
        outputs: name -> file written by the step; the JSON sidecar beside a file is added. Paths are stored relative
            to the manifest.
        inputs: name -> digest of an input of the step.
        config: the part of the configuration that the step depends on.
        facts: small results to keep. They must hold no clock times, so that equal work gives equal bytes.

    Raises:
        CommitError: an output is missing.
    """
    path = Path(path)
    for file in outputs.values():
        if not file.is_file():
            raise CommitError(f"{file}: missing, expected an output of step {step}; run the steps before it first")
    commit_json(
        path,
        {
            "step": step,
            "version": __version__,
            "revision": REVISIONS.get(step),
            "config": config,
            "inputs": dict(inputs),
            "outputs": {
                name: {"path": os.path.relpath(file, path.parent), "sha256": sha256(file)}
                for name, file in {**_sidecars(outputs), **outputs}.items()
            },
            "facts": dict(facts or {}),
        },
    )


def _sidecars(outputs: Mapping[str, Path]) -> dict[str, Path]:
    """The sidecars of `outputs` that are not among them, as NAME.json."""
    listed = set(outputs.values())
    sidecars = {f"{name}.json": sidecar_path(file) for name, file in outputs.items()}
    return {name: file for name, file in sidecars.items() if file not in listed and file.is_file()}


def read_manifest(
    path: Path | str,
    *,
    inputs: Mapping[str, str] | None = None,
    config: Any = None,
    verify: bool = True,
    digests: DigestCache | None = None,
) -> dict[str, Any] | None:
    """Return a manifest, or None if the step has to be run.

    Args:
        path: the manifest.
        inputs: if given, a manifest with other inputs, or of another revision of its step, does not count.
        config: if given, a manifest of another configuration, or of another revision of its step, does not count.
        verify: hash the outputs; a manifest whose outputs are missing or changed does not count. Steps that only
            check whether earlier steps are done pass False.
        digests: cache of digests, if several manifests are verified.
    """
    path, digests = Path(path), digests or DigestCache()
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        outputs = manifest_outputs(path, manifest)
        if verify and any(digests.sha256(file) != digest for file, digest in outputs.values()):
            return None
        if inputs is not None and manifest["inputs"] != dict(inputs):
            return None
        if config is not None and digest_of(manifest["config"]) != digest_of(config):
            return None
        compared = inputs is not None or config is not None
        if compared and manifest.get("revision", "none yet") != REVISIONS.get(manifest["step"]):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest


def manifest_outputs(path: Path, manifest: Mapping[str, Any]) -> dict[str, OutputFile]:
    """Return the output files by name of the manifest read from `path`."""
    return {
        name: OutputFile(Path(os.path.normpath(path.parent / entry["path"])), entry["sha256"])
        for name, entry in manifest["outputs"].items()
    }


def remove_outputs(path: Path, keep: Iterable[Path] = ()) -> None:
    """Remove the files that an earlier run of a step listed in its manifest, but those to `keep` and their sidecars."""
    record = read_manifest(path, verify=False)
    outputs = manifest_outputs(path, record).values() if record else ()
    kept = {Path(os.path.normpath(file)) for file in keep}
    for file, _ in outputs:
        if file not in kept | {sidecar_path(one) for one in kept}:
            file.unlink(missing_ok=True)


def remove_step(path: Path) -> None:
    """Remove what an earlier run of a step wrote: the files in its manifest, then the manifest, if there is one."""
    remove_outputs(path)
    path.unlink(missing_ok=True)


def verify_manifests(folder: Path, digests: DigestCache | None = None, *, retry: bool = False) -> list[str]:
    """Return the names of the manifests under `folder` that do not verify, sorted.

    A manifest that lists a broken manifest as an output does not verify either. With the same `digests`,
    a second call hashes only files that changed since the first.

    Args:
        folder: folder of the manifests.
        digests: cache of digests.
        retry: whether those of steps that failed for a reason that may pass count as broken.
    """
    digests = digests or DigestCache()
    broken: set[Path] = set()
    outputs: dict[Path, set[Path]] = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name.startswith(TEMP_PREFIX):
            continue
        manifest = read_manifest(path, digests=digests)
        if manifest is None or (retry and manifest.get("facts", {}).get(TRANSIENT)):
            broken.add(path)
        else:
            outputs[path] = {file for file, _ in manifest_outputs(path, manifest).values()}
    while dependents := {path for path, files in outputs.items() if path not in broken and files & broken}:
        broken |= dependents
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in broken)


def forget_broken(folder: Path, digests: DigestCache | None = None) -> list[str]:
    """Remove the manifests that `verify_manifests` finds broken and the failed attempts; return their names.

    Snakemake sees only manifests, so it runs these steps again.
    """
    broken = verify_manifests(folder, digests, retry=True)
    for name in broken:
        (folder / f"{name}.json").unlink()
    return broken
