"""Fixtures that write BIDS datasets and preprocessed scans."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from dualflow.commit import commit_json
from dualflow.imaging.volume import write_volume
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import modality

DETAIL = 0.1


@pytest.fixture
def make_bids(tmp_path) -> Callable[..., Path]:
    """Write a BIDS dataset of empty files, because the index reads names but no voxels."""

    def make(
        files: Iterable[str],
        participants: str | None = None,
        columns: Mapping[str, object] | None = None,
        name: str = "study",
    ) -> Path:
        root = tmp_path / name
        root.mkdir(parents=True)
        (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if participants is not None:
            (root / "participants.tsv").write_text(participants)
        if columns is not None:
            (root / "participants.json").write_text(json.dumps(columns))
        return root

    return make


def pair(label: str, session: str = "") -> list[str]:
    """Return the T1w and FDG files of a scan."""
    folder, key = f"sub-{label}", f"sub-{label}"
    if session:
        folder, key = f"{folder}/ses-{session}", f"{key}_ses-{session}"
    return [f"{folder}/anat/{key}_T1w.nii.gz", f"{folder}/pet/{key}_trc-FDG_pet.nii.gz"]


@pytest.fixture
def pair_files() -> Callable[..., list[str]]:
    """Return the T1w and FDG files of a scan."""
    return pair


@pytest.fixture
def write_scan() -> Callable[..., None]:
    """Write volumes by modality, and `mask`, on the model grid with the scan's manifest.

    The first modality is the source, and PET is the target. Each source has DETAIL times the first as its detail.
    """

    def write(layout: Layout, scan: Scan, volumes: Mapping[str, np.ndarray], **facts: object) -> None:
        source, *further = [modality(name) for name in volumes if name != "mask"]
        files = {"source": layout.on_grid(scan, source), "mask": layout.mask_on_grid(scan, source)}
        files |= {
            "target" if row.datatype == "pet" else row.suffix.upper(): layout.on_grid(scan, row) for row in further
        }
        arrays = [volumes[name] for name in volumes if name != "mask"]
        arrays.insert(1, volumes["mask"])
        for path, array in zip(files.values(), arrays, strict=True):
            write_volume(path, array, np.diag([4.0, 4.0, 4.0, 1.0]), dtype=np.uint8 if "_mask" in path.name else "f4")
        for name, row in {"source": source, **{row.suffix.upper(): row for row in further}}.items():
            if row.datatype != "pet":
                files[f"{name}_detail"] = layout.detail(scan, row)
                write_volume(layout.detail(scan, row), DETAIL * arrays[0], np.diag([4.0, 4.0, 4.0, 1.0]))
        commit_json(layout.record(scan, source), {"scan": scan.key})
        files["record"] = layout.record(scan, source)
        write_manifest(layout.scan_manifest(scan), step="preprocess", outputs=files, inputs={}, config={}, facts=facts)

    return write
