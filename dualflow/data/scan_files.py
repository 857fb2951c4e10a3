"""The raw files of one scan by role, and their digests as inputs of its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dualflow.config import StudyConfig
from dualflow.data.bids_files import find_mask
from dualflow.data.quarantine import without_folders
from dualflow.digests import digest_of
from dualflow.imaging.nifti_header import check_header
from dualflow.imaging.raw_image import ImageDigest, RawImage, digest_image
from dualflow.imaging.sidecar import read_sidecar
from dualflow.layout import Scan


@dataclass(frozen=True)
class ScanFiles:
    """The raw files of one scan.

    Attributes:
        source: image of the source modality.
        target: image of the target modality, or None.
        extra: images of the further source modalities, by name.
        mask: the study's brain mask, or None.
        digests: cached digests by file, such as the index's; outdated ones are ignored.
    """

    source: Path
    target: Path | None = None
    extra: Mapping[str, Path] = field(default_factory=dict)
    mask: Path | None = None
    digests: Mapping[Path, ImageDigest] = field(default_factory=dict)

    @classmethod
    def of_row(
        cls, root: Path, row: Mapping[Any, Any], study: StudyConfig, digests: Mapping[Path, ImageDigest] | None = None
    ) -> Self:
        """The files that a row of the index names.

        Args:
            root: folder of the study.
            row: a row of the index.
            study: modalities and masks of the study.
            digests: cached digests by path below `root`; None without an index.

        Raises:
            DataError: the folder of the study's masks does not exist.
        """
        columns = {name: f"source_{name}" for name in study.extra_sources}
        source, target = root / row["source"], root / row["target"] if row["target"] else None
        extra = {name: root / row[column] for name, column in columns.items()}
        names = [Path(row[column]) for column in ("source", "target", *columns.values()) if row[column]]
        cached = {root / name: digests[name] for name in names if digests and name in digests}
        return cls(source, target, extra, find_mask(study, Scan.parse(row["scan"]), source), cached)

    @property
    def paths(self) -> dict[str, Path]:
        """The files by role: `source`, `target`, `mask`, or the modality of a further source."""
        optional = {name: path for name, path in (("target", self.target), ("mask", self.mask)) if path}
        return {"source": self.source, **self.extra, **optional}

    @property
    def folders(self) -> set[Path]:
        """The folders of the files, and all folders above them."""
        return {parent for path in self.paths.values() for parent in path.parents}

    def without_folders(self, text: str, *others: Path) -> str:
        """A text in which paths of the files, of inherited sidecars above them and of `others` are their names."""
        return without_folders(text, *self.folders, *(parent for other in others for parent in other.parents))

    def open(self) -> dict[str, RawImage]:
        """Sidecar and digest of each file, by role; a file with a current cached digest is not read.

        Raises:
            DataError: a file cannot be read, or its header or sidecar is invalid.
        """
        for path in self.paths.values():
            check_header(path, 4, series=True)  # before any file is read, because a file may claim any size
        sidecars = {name: read_sidecar(path) for name, path in self.paths.items()}
        return {name: RawImage(path, sidecars[name], self._digest(path)) for name, path in self.paths.items()}

    def _digest(self, path: Path) -> ImageDigest:
        cached = self.digests.get(path)
        return cached if cached and cached.is_current(path) else digest_image(path)


def input_digests(images: Mapping[str, RawImage]) -> dict[str, str]:
    """Inputs in the manifest of a scan: digests of the images and their sidecars, by role."""
    sidecars = {f"{name}_sidecar": digest_of(image.sidecar) for name, image in images.items()}
    return {name: image.digest.sha256 for name, image in images.items()} | sidecars
