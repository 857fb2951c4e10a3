"""The record of a scan: everything that was done to it, as JSON, and the ways through space that are in it.

The way back to the source's own grid needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualflow.commit import sha256
from dualflow.errors import DataError
from dualflow.imaging.geometry import Affine, FloatArray, Grid, Volume, resample
from dualflow.imaging.registration import Alignment
from dualflow.imaging.sidecar import read_sidecar

_ACQUISITION = (
    "Units",
    "TracerName",
    "TracerRadionuclide",
    "ScanStart",
    "InjectionStart",
    "FrameTimesStart",
    "FrameDuration",
    "ManufacturersModelName",
    "MagneticFieldStrength",
)


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a preprocessed scan.

    Raises:
        DataError: it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read, expected a scan's record; run the preprocess step again") from error
    return record


def onto_grid(
    volume: Volume, record: Mapping[str, Any], grid: Grid, *, world: str, order: int = 1, background: float = 0.0
) -> FloatArray:
    """Interpolate any image that lies in the world of one of the pair's images onto the model grid.

    `world` is `source`, `target`, or the modality of a further source.

    Raises:
        DataError: the record knows no such world.
    """
    known, (affine, shape) = worlds(record), grid
    if world not in known:
        raise DataError(f"world '{world}' is not in this record; choose from: {', '.join(known)}")
    return resample(volume, affine, shape, through_source(record, known[world]), order, background)


def to_native(array: FloatArray, record: Mapping[str, Any], *, background: float) -> tuple[FloatArray, Affine]:
    """Interpolate `[D, H, W]` on the model grid once, onto the source's own grid; needs only the record.

    Returns:
        The image `[I, J, K]`, `background` outside the model grid, and its affine.
    """
    volume = Volume(np.asarray(array, dtype=np.float32), np.array(record["grid"]["affine"]))
    affine = np.array(record["native_grid"]["affine"])
    i, j, k = record["native_grid"]["shape"]
    points_map = np.array(record["source_to_template"])
    return resample(volume, affine, (i, j, k), points_map, background=background), affine


def worlds(record: Mapping[str, Any]) -> dict[str, Affine]:
    """Points map from the world of each of the record's images to the source's."""
    targets = {"target": record["target_to_source"]} if record["target"] else {}
    extra = {name: found["to_source"] for name, found in record["extra_sources"].items()}
    return {name: np.array(found) for name, found in {"source": np.eye(4), **targets, **extra}.items()}


def through_source(record: Mapping[str, Any], to_source: Affine) -> Affine:
    """Points map from the template's world, through the source's, to that of an image that `to_source` leads from."""
    return np.asarray(np.linalg.inv(to_source) @ np.linalg.inv(np.array(record["source_to_template"])))


def grid_record(affine: Affine, shape: tuple[int, int, int]) -> dict[str, Any]:
    """A grid as `Grid`, JSON-able."""
    return {"affine": affine.tolist(), "shape": list(shape)}


def file_record(path: Path) -> dict[str, Any]:
    """Name, hash and what the BIDS sidecar tells of the acquisition; folders are left out, they may name people."""
    sidecar = read_sidecar(path)
    known = {key: sidecar[key] for key in _ACQUISITION if key in sidecar}
    return {"file": path.name, "sha256": sha256(path), "acquisition": known}


def quality_record(alignment: Alignment) -> dict[str, Any]:
    """How well two images lie on each other, and how far one was moved for it."""
    information, overlap = alignment.mutual_information, alignment.overlap
    before = None if alignment.before is None else _fit(*alignment.before)
    return _fit(information, overlap) | {"displacement_mm": round(alignment.displacement_mm, 4), "before": before}


def _fit(information: float, overlap: float) -> dict[str, float]:
    return {"mutual_information_nats": round(information, 6), "overlap": round(overlap, 6)}
