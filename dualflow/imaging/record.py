"""The record of a preprocessed scan: its files, transforms, intensities and quality metrics, as JSON.

The record is sufficient to map an image back onto the source's own grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualflow.arrays import Singles
from dualflow.errors import DataError
from dualflow.imaging.affines import SCANNER, FormCodes
from dualflow.imaging.geometry import Affine, Grid, Volume, resample
from dualflow.imaging.nifti_header import check_header
from dualflow.imaging.raw_image import RawImage
from dualflow.imaging.registration import Alignment

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
        DataError: the file cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read, expected a scan's record; run the preprocess step again") from error
    return record


def resample_to_grid(
    volume: Volume, record: Mapping[str, Any], grid: Grid, *, world: str, background: float = 0.0
) -> Singles:
    """Interpolate an image linearly onto a grid in template space.

    Args:
        volume: an image in the world of one of the scan's images.
        record: the scan's record.
        grid: affine and shape of the result.
        world: `source`, `target`, or the modality of a further source.
        background: value outside the image.

    Raises:
        DataError: the record has no such world.
    """
    to_source, (affine, shape) = maps_to_source(record), grid
    if world not in to_source:
        raise DataError(f"world '{world}' is not in this record; choose from: {', '.join(to_source)}")
    return resample(volume, affine, shape, template_to_image(record, to_source[world]), background=background)


def to_native(array: Singles, record: Mapping[str, Any], *, background: float) -> tuple[Singles, Affine]:
    """Interpolate an image on the model grid once, onto the source's own grid.

    Args:
        array: `[D, H, W]` on the model grid.
        record: the scan's record.
        background: value outside the model grid.

    Returns:
        The image `[I, J, K]` and its affine.
    """
    volume = Volume(np.asarray(array, dtype=np.float32), np.array(record["grid"]["affine"]))
    affine = np.array(record["native_grid"]["affine"])
    i, j, k = record["native_grid"]["shape"]
    points_map = np.array(record["source_to_template"])
    return resample(volume, affine, (i, j, k), points_map, background=background), affine


def maps_to_source(record: Mapping[str, Any]) -> dict[str, Affine]:
    """Points map from the world of each of the record's images to the source's."""
    target = {"target": record["target_to_source"]} if record["target"] else {}
    extra = {name: image["to_source"] for name, image in record["extra_sources"].items()}
    return {name: np.array(matrix) for name, matrix in {"source": np.eye(4), **target, **extra}.items()}


def template_to_image(record: Mapping[str, Any], to_source: Affine) -> Affine:
    """Points map from the template's world to an image's, through the source's; `to_source` maps the image's world."""
    return np.asarray(np.linalg.inv(to_source) @ np.linalg.inv(np.array(record["source_to_template"])))


def grid_record(affine: Affine, shape: tuple[int, int, int]) -> dict[str, Any]:
    """A grid as `Grid`, JSON-able."""
    return {"affine": affine.tolist(), "shape": list(shape)}


def native_grid_record(scan: Volume) -> dict[str, Any]:
    """A scan's own grid, with the codes of its qform and sform, JSON-able."""
    header = check_header(scan.path, 4, series=True).header
    return grid_record(*scan.grid) | {name: int(header[name]) for name in ("qform_code", "sform_code")}


def native_codes(record: Mapping[str, Any]) -> FormCodes:
    """Codes for volumes on the source's own grid: the source's, or those of a scanner in records without them."""
    grid = record["native_grid"]
    return FormCodes(grid["qform_code"], grid["sform_code"]) if "qform_code" in grid else SCANNER


def file_record(image: RawImage) -> dict[str, Any]:
    """Name, hash and acquisition parameters of an image; folders are left out because they may name people."""
    acquisition = {key: image.sidecar[key] for key in _ACQUISITION if key in image.sidecar}
    return {"file": image.path.name, "sha256": image.digest.sha256, "acquisition": acquisition}


def quality_record(alignment: Alignment) -> dict[str, Any]:
    """Mutual information, overlap, displacement and rotation of an alignment, and for the template, `coverage`."""
    in_view = {} if alignment.in_view is None else {"coverage": round(alignment.in_view, 6)}
    before = None if alignment.before is None else _fit(*alignment.before)
    return _fit(alignment.mutual_information, alignment.overlap) | {
        "displacement_mm": round(alignment.displacement_mm, 4),
        "rotation_deg": round(alignment.rotation_deg, 2),
        "before": before,
        **in_view,
    }


def _fit(information: float, overlap: float) -> dict[str, float]:
    return {"mutual_information_nats": round(information, 6), "overlap": round(overlap, 6)}
