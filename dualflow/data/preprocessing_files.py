"""Files of one scan's preprocessing on disk, also those that no manifest lists."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dualflow.config import StudyConfig
from dualflow.errors import DataError
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.modalities import modality


def scans_on_disk(layout: Layout, step: str) -> list[Scan]:
    """Scans with a manifest of a step, and those with a folder among the derivatives, whose manifest may be lost."""
    folders = [*layout.derivatives.glob("sub-*"), *layout.derivatives.glob("sub-*/ses-*")]
    keys = {"_".join(folder.relative_to(layout.derivatives).parts) for folder in folders}
    keys |= {manifest.stem for manifest in layout.manifest(f"{step}/any").parent.glob("*.json")}
    scans = []
    for key in sorted(keys):
        with suppress(DataError):  # somebody else's folder
            scans.append(Scan.parse(key))
    return scans


def remove_preprocessed(layout: Layout, scan: Scan, study: StudyConfig) -> None:
    """Remove the files of a scan's preprocessing, also those of one that did not finish."""
    for file in preprocessing_files(layout, scan, study):
        file.unlink(missing_ok=True)


def preprocessing_files(layout: Layout, scan: Scan, study: StudyConfig) -> list[Path]:
    """Paths of the files that preprocessing writes for a scan with all images of a study, with their sidecars."""
    source, target = modality(study.source), modality(study.target)
    images = [layout.on_grid(scan, modality(name)) for name in study.modalities]
    images += [layout.detail(scan, modality(name)) for name in study.sources]
    images += [layout.mask_on_grid(scan, source), layout.mask_native(scan, source)]
    images.append(layout.target_native(scan, source, target))
    return [*images, *map(sidecar_path, images), layout.figure(scan, "qc")]
