"""Outputs of a scan's preprocessing; each file is verified in the same read that loads it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import nibabel as nib
import numpy as np

from dualflow.data.quarantine import Quarantine
from dualflow.errors import DataError
from dualflow.imaging.affines import resolve_affine
from dualflow.imaging.geometry import Volume
from dualflow.layout import Layout, Scan
from dualflow.manifest import OutputFile, manifest_outputs, read_manifest


@dataclass(frozen=True)
class PreprocessedScan:
    """The outputs of a scan's preprocessing, as its manifest lists them.

    Attributes:
        scan: the scan.
        files: output files by name, such as `source`, `target`, `mask`, `mask_native` or `record`; none if the scan is
            excluded.
        quarantine: why the scan is excluded; None if it is usable.
    """

    scan: Scan
    files: Mapping[str, OutputFile]
    quarantine: Quarantine | None = None

    @classmethod
    def from_manifest(cls, layout: Layout, scan: Scan) -> Self:
        """Read a scan's manifest; its files are verified when they are read.

        Raises:
            DataError: the scan is not preprocessed.
        """
        path = layout.scan_manifest(scan)
        manifest = read_manifest(path, verify=False)
        if manifest is None:
            raise DataError(f"{scan.key}: not preprocessed (no manifest {path}); run the preprocess step")
        return cls(scan, manifest_outputs(path, manifest), Quarantine.of_manifest(scan.key, manifest))

    def volume(self, name: str) -> Volume:
        """Read an image.

        Raises:
            DataError: the image is missing or has changed since preprocessing.
        """
        path, data = self._read(name)
        # Written by this program and verified: the checks of raw scans are not needed.
        image = nib.Nifti1Image.from_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
        i, j, k = image.shape
        return Volume(np.asarray(image.dataobj, dtype=np.float32), resolve_affine(image.header, (i, j, k), path), path)

    def record(self) -> dict[str, Any]:
        """Read the record: transforms, intensities and quality.

        Raises:
            DataError: the record is missing or has changed since preprocessing.
        """
        record: dict[str, Any] = json.loads(self._read("record")[1])
        return record

    def _read(self, name: str) -> tuple[Path, bytes]:
        """Path and verified content of an output file."""
        if name not in self.files:
            raise DataError(
                f"{self.scan.key}: has no preprocessed {name} (found: {', '.join(self.files) or 'nothing'}); "
                "run the preprocess step again"
            )
        path, sha256 = self.files[name]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); run the preprocess step again") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{path}: changed since preprocessing; run the preprocess step again")
        return path, data
