"""Finished scans of a conversion, known by the sizes and times of their files: a rerun opens no image.

The manifests hold digests, and verifying them reads every file. After a scan is finished, its worker therefore records
the state of all its files. While none has changed, and nothing else the result depends on, the scan is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualflow.commit import commit_json
from dualflow.data.quarantine import Quarantine
from dualflow.data.raw_scans import PERMANENT
from dualflow.data.raw_scans import STEP as PREPROCESS
from dualflow.data.scan_files import ScanFiles
from dualflow.digests import digest_of
from dualflow.errors import DataError
from dualflow.imaging.sidecar import read_sidecar
from dualflow.inference.conversion_record import STEP
from dualflow.layout import Layout, Scan
from dualflow.manifest import manifest_outputs, read_manifest
from dualflow.revisions import REVISIONS

State = dict[str, list[int]]
"""Size and modification time in ns of each file, by its role or its path in the results: no folder of the source."""


@dataclass(frozen=True)
class Finished:
    """A finished scan.

    Attributes:
        excluded: why it was excluded; None if it was converted.
    """

    excluded: Quarantine | None


@dataclass(frozen=True)
class ScanState:
    """What the result of a scan depends on, taken before the work on it begins.

    Attributes:
        layout: paths of the output dataset.
        scan: the scan.
        digest: digest of the settings and sidecars.
        raw: state of the raw files; None if one cannot be read.
    """

    layout: Layout
    scan: Scan
    digest: str
    raw: State | None

    @classmethod
    def of(cls, layout: Layout, scan: Scan, files: ScanFiles, settings: Any) -> ScanState:
        """The state of a scan.

        Args:
            layout: paths of the output dataset.
            scan: the scan.
            files: its raw files.
            settings: all else that its result depends on, as JSON values.
        """
        try:
            raw = _state(files.paths)
        except OSError:
            raw = None
        revisions = [REVISIONS[PREPROCESS], REVISIONS[STEP]]
        sidecars = {name: _sidecar(path) for name, path in files.paths.items()}
        return cls(layout, scan, digest_of([revisions, settings, sidecars]), raw)

    @property
    def _record(self) -> Path:
        return self.layout.manifest(f"{STEP}/{self.scan.key}").with_suffix(".files")

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.layout.root)

    def recall(self) -> Finished | None:
        """The result of an earlier run, or None if the scan is not finished or a file has changed."""
        try:
            record = json.loads(self._record.read_text())
            if self.raw is None or (record["digest"], record["raw"]) != (self.digest, self.raw):
                return None
            if record["results"] != _state({name: self.layout.root / name for name in record["results"]}):
                return None
            return Finished(Quarantine(**record["excluded"]) if record["excluded"] else None)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, excluded: Quarantine | None) -> None:
        """Record the result of a scan; an exclusion for a reason that may pass is not recorded.

        Raises:
            CommitError: the record cannot be written.
        """
        manifests = [self.layout.scan_manifest(self.scan)]
        if excluded is None:
            manifests.append(self.layout.manifest(f"{STEP}/{self.scan.key}"))
        records = {path: read_manifest(path, verify=False) for path in manifests}
        if self.raw is None or None in records.values():
            return
        if excluded and not all(record and record["facts"].get(PERMANENT) for record in records.values()):
            return
        outputs = [
            file.path for path, record in records.items() for file in manifest_outputs(path, record or {}).values()
        ]
        content = {
            "digest": self.digest,
            "raw": self.raw,
            "results": _state({self._name(path): path for path in (*manifests, *outputs)}),
            "excluded": {"scan": excluded.scan, "step": excluded.step, "reason": excluded.reason} if excluded else None,
        }
        commit_json(self._record, content)


def _sidecar(path: Path) -> dict[str, Any] | str:
    """The contents of an image's sidecars, or why they cannot be used."""
    try:
        return read_sidecar(path)
    except DataError as error:
        return str(error)


def _state(files: Mapping[str, Path]) -> State:
    states = {name: file.stat() for name, file in files.items()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
