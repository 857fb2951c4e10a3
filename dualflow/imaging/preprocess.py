"""The pair pipeline: raw scans to the model grid by one interpolation each, and back by one more.

source: read -> brain mask -> bias field -> affine to the template -> model grid -> normalise -> mask
target: read -> rigid to the source -> (bias field) -> model grid through source and template -> normalise -> mask

What was done is one JSON record; the way back to the source's own grid needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nilearn.datasets
import numpy as np

from dualflow import __version__
from dualflow.commit import sha256
from dualflow.config import PreprocessConfig
from dualflow.errors import DataError
from dualflow.imaging import intensity
from dualflow.imaging.bias import correct_bias
from dualflow.imaging.geometry import Affine, BoolArray, FloatArray, Grid, Volume, centred_affine, resample
from dualflow.imaging.mask import brain_mask, brain_volume_ml
from dualflow.imaging.quality import save_figure
from dualflow.imaging.registration import Alignment, register_affine, register_rigid
from dualflow.imaging.volume import read_volume, sidecar_path, write_volume
from dualflow.layout import TEMPLATE_SPACE, Layout, Scan
from dualflow.modalities import Modality

_LIBRARIES = ("SimpleITK", "deepbet", "monai", "nibabel", "nilearn", "numpy", "scipy", "torch")
_ACQUISITION = (
    "Units",
    "TracerName",
    "TracerRadionuclide",
    "FrameTimesStart",
    "FrameDuration",
    "MagneticFieldStrength",
)
_MNI = 4
_PICTURE_MM = 2.0


@dataclass(frozen=True)
class Pair:
    """One scan, ready for the model.

    Attributes:
        source: `[D, H, W]` on the model grid, normalised, background outside the brain.
        target: the same for the target; None where there is none.
        mask: brain `[D, H, W]` on the model grid.
        record: everything that was done, JSON-able.
        source_volume: the source on its own grid, free of its bias field, raw units.
        native_mask: brain on the source's own grid.
        target_native: the target on the source's own grid, normalised, background outside the brain.
        target_volume: the target on its own grid, raw units.
    """

    source: FloatArray
    target: FloatArray | None
    mask: BoolArray
    record: dict[str, Any]
    source_volume: Volume
    native_mask: BoolArray
    target_native: FloatArray | None
    target_volume: Volume | None = None


@cache
def _template_centre() -> tuple[float, float, float]:
    """World middle of the bounding box of the template's brain."""
    mask = nilearn.datasets.load_mni152_brain_mask(resolution=1)
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    middle = mask.affine @ np.append((inside.min(axis=0) + inside.max(axis=0)) / 2, 1)
    return float(middle[0]), float(middle[1]), float(middle[2])


def model_grid(config: PreprocessConfig) -> Grid:
    """Affine and shape of the model grid: RAS-aligned, isotropic, centred on the template's brain."""
    return centred_affine(np.array(_template_centre()), config.spacing_mm, config.shape), config.shape


def preprocess_pair(
    source: Path, target: Path | None, source_row: Modality, target_row: Modality, config: PreprocessConfig
) -> Pair:
    """Bring a source scan, and its target where there is one, onto the model grid.

    Raises:
        DataError: a scan is refused, holds no brain, or cannot be aligned; the subclass and message say which.
    """
    affine, shape = model_grid(config)
    scan = read_volume(source)
    native_mask = brain_mask(scan)
    corrected = correct_bias(scan, native_mask) if config.bias_field and source_row.bias_field else scan
    to_template = register_affine(corrected, native_mask)
    record: dict[str, Any] = {
        "grid": _grid_record(affine, shape),
        "native_grid": _grid_record(*scan.grid),
        "source_to_template": to_template.points_map.tolist(),
        "source": _file_record(source),
        "target": None,
        "spacing_mm": config.spacing_mm,
        "versions": {"dualflow": __version__, **{name: version(name) for name in _LIBRARIES}},
        "quality": {"brain_ml": brain_volume_ml(native_mask, scan), "source_to_template": _quality(to_template)},
    }
    raw = onto_grid(corrected, record, (affine, shape), world="source")
    brain = Volume(native_mask.astype(np.float32), scan.affine)
    mask = onto_grid(brain, record, (affine, shape), world="source") > 0.5
    values, record["source"]["intensity"] = intensity.normalise(raw, mask, source_row.normaliser, str(source))
    pair = Pair(values, None, mask, record, corrected, native_mask, None)
    return pair if target is None else _add_target(pair, target, target_row, config)


def _add_target(pair: Pair, path: Path, row: Modality, config: PreprocessConfig) -> Pair:
    affine, shape = model_grid(config)
    volume = read_volume(path)
    source = pair.source_volume
    alignment = register_rigid(volume, source, pair.native_mask)
    record = pair.record | {
        "target_to_source": alignment.points_map.tolist(),
        "target": _file_record(path),
        "quality": pair.record["quality"] | {"target_to_source": _quality(alignment)},
    }
    if config.bias_field and row.bias_field:
        brain = Volume(pair.native_mask.astype(np.float32), source.affine)
        there = resample(brain, *volume.grid, points_map=alignment.points_map) > 0.5
        volume = correct_bias(volume, there)
    raw = onto_grid(volume, record, (affine, shape), world="target")
    values, fitted = intensity.normalise(raw, pair.mask, row.normaliser, str(path))
    record["target"]["intensity"] = fitted
    native = resample(volume, *source.grid, points_map=np.linalg.inv(alignment.points_map))
    return replace(
        pair,
        target=values,
        record=record,
        target_native=intensity.apply(native, fitted, pair.native_mask),
        target_volume=volume,
    )


def onto_grid(
    volume: Volume, record: Mapping[str, Any], grid: Grid, *, world: str, order: int = 1, background: float = 0.0
) -> FloatArray:
    """Interpolate any image that lies in the world of the pair's `source` or `target` onto the model grid.

    Raises:
        DataError: `world` is neither, or the record has no target.
    """
    affine, shape = grid
    return resample(volume, affine, shape, _from_template(record, world), order, background)


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


def write_pair(pair: Pair, layout: Layout, scan: Scan, source_row: Modality, target_row: Modality) -> dict[str, Path]:
    """Write a pair's images, sidecars, record and picture; return their paths by name."""
    grid = np.array(pair.record["grid"]["affine"])
    native = pair.source_volume.affine
    on_grid = {
        "SkullStripped": True,
        "SpatialReference": f"{TEMPLATE_SPACE}, affine",
        "Resolution": f"Model grid, {pair.record['spacing_mm']:g} mm isotropic",
    }
    in_native = {"SkullStripped": True, "SpatialReference": "orig", "Resolution": "The source scan's own grid"}
    mask = {"Type": "Brain", "SkullStripped": False}
    files = {
        "source": layout.on_grid(scan, source_row),
        "record": layout.record(scan, source_row),
        "mask": layout.mask_on_grid(scan, source_row),
        "mask_native": layout.mask_native(scan, source_row),
        "figure": layout.figure(scan, "qc"),
    }
    write_volume(
        files["source"], pair.source, grid, code=_MNI, sidecar=pair.record | on_grid | {"Units": source_row.unit}
    )
    write_volume(files["mask"], pair.mask, grid, dtype=np.uint8, code=_MNI, sidecar=on_grid | mask)
    write_volume(files["mask_native"], pair.native_mask, native, dtype=np.uint8, sidecar=in_native | mask)
    if pair.target is not None and pair.target_native is not None:
        about = {"Units": target_row.unit, "Intensity": pair.record["target"]["intensity"]}
        about |= {"TracerName": target_row.tracer} if target_row.tracer else {}
        files |= {
            "target": layout.on_grid(scan, target_row),
            "target_native": layout.target_native(scan, source_row, target_row),
        }
        write_volume(files["target"], pair.target, grid, code=_MNI, sidecar=about | on_grid)
        write_volume(files["target_native"], pair.target_native, native, sidecar=about | in_native)
    _save_picture(files["figure"], pair, scan.key)
    return files


def _save_picture(path: Path, pair: Pair, title: str) -> None:
    """The quality picture, on a template-aligned grid fine enough to see a shift of a voxel."""
    centre, extent = np.array(_template_centre()), np.array([192.0, 228.0, 204.0])
    i, j, k = (round(edge / _PICTURE_MM) for edge in extent)
    grid = centred_affine(centre, _PICTURE_MM, (i, j, k)), (i, j, k)
    brain = Volume(pair.native_mask.astype(np.float32), pair.source_volume.affine)
    targets = {}
    if pair.target_volume is not None:
        targets = {
            "target before alignment": onto_grid(pair.target_volume, pair.record, grid, world="source"),
            "target after alignment": onto_grid(pair.target_volume, pair.record, grid, world="target"),
        }
    save_figure(
        path,
        title=title,
        source=onto_grid(pair.source_volume, pair.record, grid, world="source"),
        mask=onto_grid(brain, pair.record, grid, world="source") > 0.5,
        targets=targets,
    )


def _from_template(record: Mapping[str, Any], world: str) -> Affine:
    """Points map from the template's world to the source's or the target's."""
    to_source = np.linalg.inv(np.array(record["source_to_template"]))
    if world == "source":
        return to_source
    if world != "target" or "target_to_source" not in record:
        raise DataError(f"world '{world}' is not in this record, expected 'source', or 'target' of a pair that has one")
    return np.asarray(np.linalg.inv(np.array(record["target_to_source"])) @ to_source)


def _grid_record(affine: Affine, shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"affine": affine.tolist(), "shape": list(shape)}


def _file_record(path: Path) -> dict[str, Any]:
    """Name, hash and what the BIDS sidecar tells of the acquisition; folders are left out, they may name people."""
    try:
        sidecar = json.loads(sidecar_path(path).read_text())
    except FileNotFoundError:
        sidecar = {}
    except (OSError, ValueError) as error:
        raise DataError(f"{sidecar_path(path)}: is not JSON ({error}); mend or remove it") from error
    known = {key: sidecar[key] for key in _ACQUISITION if key in sidecar} if isinstance(sidecar, dict) else {}
    return {"file": path.name, "sha256": sha256(path), "acquisition": known}


def _quality(alignment: Alignment) -> dict[str, float]:
    return {
        "mutual_information_nats": round(alignment.mutual_information, 6),
        "displacement_mm": round(alignment.displacement_mm, 4),
        "overlap": round(alignment.overlap, 6),
    }
