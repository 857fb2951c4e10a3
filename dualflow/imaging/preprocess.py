"""The pair pipeline: raw scans to the model grid by one interpolation each, and back by one more.

source: read -> brain mask -> bias field -> affine to the template -> model grid -> normalise -> mask
target: read -> rigid to the source -> (bias field) -> model grid through source and template -> normalise -> mask

Further sources go the target's way. What was done is one JSON record; the way back to the source's own grid needs
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from dualflow.imaging.mask import brain_mask, brain_volume_ml, own_mask
from dualflow.imaging.pet import read_scan
from dualflow.imaging.quality import COLOURS, Image, save_figure
from dualflow.imaging.reference import reference_region
from dualflow.imaging.registration import Alignment, register_affine, register_rigid, trust_alignment
from dualflow.imaging.shape import check, figures, likeness_of, shape_of
from dualflow.imaging.sidecar import read_sidecar
from dualflow.imaging.stopwatch import Stopwatch
from dualflow.imaging.volume import write_volume
from dualflow.layout import TEMPLATE_SPACE, Layout, Scan
from dualflow.modalities import Modality, modality

_LIBRARIES = ("SimpleITK", "deepbet", "monai", "nibabel", "nilearn", "numpy", "scipy", "torch")
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
_MNI = 4
_PICTURE_MM = 2.0


@dataclass(frozen=True)
class Partner:
    """An image of the same head beside the source, brought into its space.

    Attributes:
        values: `[D, H, W]` on the model grid, normalised, background outside the brain.
        volume: on its own grid, raw units.
        alignment: from its world to the source's.
        record: its file and its intensities, JSON-able.
    """

    values: FloatArray
    volume: Volume
    alignment: Alignment
    record: dict[str, Any]


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
        extra: the further sources, by their modality.
        clock: how long it took; not in the record, for equal scans have equal records.
    """

    source: FloatArray
    target: FloatArray | None
    mask: BoolArray
    record: dict[str, Any]
    source_volume: Volume
    native_mask: BoolArray
    target_native: FloatArray | None
    target_volume: Volume | None = None
    extra: Mapping[str, Partner] = field(default_factory=dict)
    clock: Stopwatch = field(default_factory=Stopwatch, compare=False)


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
    source: Path,
    target: Path | None,
    source_row: Modality,
    target_row: Modality,
    config: PreprocessConfig,
    *,
    extra: Mapping[str, Path] | None = None,
    mask: Path | None = None,
) -> Pair:
    """Bring a source scan, and its target where there is one, onto the model grid.

    Args:
        source: the scan whose grid, brain mask and registration with the template are the pair's.
        target: the image to learn.
        source_row: modality of the source.
        target_row: modality of the target.
        config: what is done.
        extra: further sources, by the name of their modality.
        mask: the study's own brain mask on the source's grid; deepbet's where left out.

    Raises:
        DataError: a scan is refused, holds no brain, or cannot be aligned; the subclass and message say which.
    """
    affine, shape = model_grid(config)
    clock = Stopwatch()
    with clock("read"):
        scan, about = read_scan(source, source_row, config)
    with clock("brain_mask"):
        native_mask = own_mask(mask, scan) if mask else brain_mask(scan)
    with clock("bias_field"):
        corrected = correct_bias(scan, native_mask) if config.bias_field and source_row.bias_field else scan
    with clock("template"):
        to_template = register_affine(corrected, native_mask)
        likeness = likeness_of(native_mask, scan.affine, to_template.points_map)
        check(likeness, mask or source)
    record: dict[str, Any] = {
        "grid": _grid_record(affine, shape),
        "native_grid": _grid_record(*scan.grid),
        "source_to_template": to_template.points_map.tolist(),
        "source": _file_record(source) | about,
        "brain_mask": {"file": mask.name, "sha256": sha256(mask)} if mask else {"made_by": "deepbet"},
        "extra_sources": {},
        "target": None,
        "spacing_mm": config.spacing_mm,
        "versions": {"dualflow": __version__, **{name: version(name) for name in _LIBRARIES}},
        "quality": {
            "brain_ml": brain_volume_ml(native_mask, scan),
            "brain_mask": figures(shape_of(native_mask, scan.affine), likeness),
            "source_to_template": _quality(to_template),
        },
    }
    with clock("grid"):
        raw = onto_grid(corrected, record, (affine, shape), world="source", background=np.nan)
        brain = Volume(native_mask.astype(np.float32), scan.affine)
        on_grid = onto_grid(brain, record, (affine, shape), world="source") > 0.5
        values, fitted = _normalised(raw, on_grid, source_row, config, about, source)
        record["source"]["intensity"] = fitted
    pair = Pair(values, None, on_grid, record, corrected, native_mask, None, clock=clock)
    for name, path in (extra or {}).items():
        pair = _add_source(pair, name, path, config)
    return pair if target is None else _add_target(pair, target, target_row, config)


def _add_source(pair: Pair, name: str, path: Path, config: PreprocessConfig) -> Pair:
    partner = _bring(pair, path, modality(name), config)
    found = partner.record | {"to_source": partner.alignment.points_map.tolist()}
    record = pair.record | {
        "extra_sources": pair.record["extra_sources"] | {name: found},
        "quality": pair.record["quality"] | {f"{name}_to_source": _quality(partner.alignment)},
    }
    return replace(pair, record=record, extra={**pair.extra, name: partner})


def _add_target(pair: Pair, path: Path, row: Modality, config: PreprocessConfig) -> Pair:
    partner, source = _bring(pair, path, row, config), pair.source_volume
    record = pair.record | {
        "target_to_source": partner.alignment.points_map.tolist(),
        "target": partner.record,
        "quality": pair.record["quality"] | {"target_to_source": _quality(partner.alignment)},
    }
    with pair.clock("grid"):
        native = resample(partner.volume, *source.grid, points_map=np.linalg.inv(partner.alignment.points_map))
        target_native = intensity.apply(native, partner.record["intensity"], pair.native_mask)
    return replace(
        pair,
        target=partner.values,
        record=record,
        target_native=target_native,
        target_volume=partner.volume,
    )


def _bring(pair: Pair, path: Path, row: Modality, config: PreprocessConfig) -> Partner:
    """Align an image with the pair's source, and interpolate it once onto the model grid."""
    affine, shape = model_grid(config)
    source, clock = pair.source_volume, pair.clock
    with clock("read"):
        volume, about = read_scan(path, row, config)
    align = trust_alignment if config.aligned else register_rigid
    with clock("align"):
        alignment = align(volume, source, pair.native_mask)
    if config.bias_field and row.bias_field:
        with clock("bias_field"):
            brain = Volume(pair.native_mask.astype(np.float32), source.affine)
            there = resample(brain, *volume.grid, points_map=alignment.points_map) > 0.5
            volume = correct_bias(volume, there)
    with clock("grid"):
        through_source = _through_source(pair.record, alignment.points_map)
        raw = resample(volume, affine, shape, through_source, background=np.nan)
        values, fitted = _normalised(raw, pair.mask, row, config, about, path)
    return Partner(values, volume, alignment, _file_record(path) | about | {"intensity": fitted})


def _normalised(
    raw: FloatArray, brain: BoolArray, row: Modality, config: PreprocessConfig, about: Mapping[str, Any], path: Path
) -> tuple[FloatArray, dict[str, Any]]:
    """Normalise an image on the model grid, NaN outside its field of view; what lies there counts for nothing."""
    shown = np.isfinite(raw)
    region, found = brain & shown, dict[str, Any]()
    if row.normaliser == "suvr":
        reference = reference_region(config.reference_region, model_grid(config), brain, shown, path)
        region, found = reference.mask, reference.record | {"reference_unit": about["pet"]["unit"]}
    filled = np.where(shown, raw, np.float32(0))
    values, fitted = intensity.normalise(filled, brain, row.normaliser, str(path), region)
    return values, fitted | found


def onto_grid(
    volume: Volume, record: Mapping[str, Any], grid: Grid, *, world: str, order: int = 1, background: float = 0.0
) -> FloatArray:
    """Interpolate any image that lies in the world of one of the pair's images onto the model grid.

    `world` is `source`, `target`, or the modality of a further source.

    Raises:
        DataError: the record knows no such world.
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
        about = _about(target_row, pair.record["target"])
        files |= {
            "target": layout.on_grid(scan, target_row),
            "target_native": layout.target_native(scan, source_row, target_row),
        }
        write_volume(files["target"], pair.target, grid, code=_MNI, sidecar=about | on_grid)
        write_volume(files["target_native"], pair.target_native, native, sidecar=about | in_native)
    for name, partner in pair.extra.items():
        about = _about(modality(name), partner.record)
        files[name] = layout.on_grid(scan, modality(name))
        write_volume(files[name], partner.values, grid, code=_MNI, sidecar=about | on_grid)
    _save_picture(files["figure"], pair, source_row, target_row)
    return files


def _about(row: Modality, record: Mapping[str, Any]) -> dict[str, Any]:
    tracer = {"TracerName": row.tracer} if row.tracer else {}
    return {"Units": row.unit, "Intensity": record["intensity"], **tracer}


def _save_picture(path: Path, pair: Pair, source_row: Modality, target_row: Modality) -> None:
    """The quality picture, on a template-aligned grid fine enough to see a shift of a voxel."""
    centre, extent = np.array(_template_centre()), np.array([192.0, 228.0, 204.0])
    i, j, k = (round(edge / _PICTURE_MM) for edge in extent)
    grid = centred_affine(centre, _PICTURE_MM, (i, j, k)), (i, j, k)
    brain = Volume(pair.native_mask.astype(np.float32), pair.source_volume.affine)
    source = onto_grid(pair.source_volume, pair.record, grid, world="source")
    others = [(name, modality(name), partner.volume) for name, partner in pair.extra.items()]
    if pair.target_volume is not None:
        others.append(("target", target_row, pair.target_volume))
    images = []
    for world, row, volume in others:
        moved = not np.array_equal(_worlds(pair.record)[world], np.eye(4))
        before = onto_grid(volume, pair.record, grid, world="source") if moved else None
        after = onto_grid(volume, pair.record, grid, world=world)
        images.append(Image(row.tracer or row.suffix, after, before, COLOURS.get(row.datatype, "gray")))
    mask = onto_grid(brain, pair.record, grid, world="source") > 0.5
    save_figure(path, Image(source_row.suffix, source), images, mask)


def _from_template(record: Mapping[str, Any], world: str) -> Affine:
    """Points map from the template's world to that of one of the record's images."""
    worlds = _worlds(record)
    if world not in worlds:
        raise DataError(f"world '{world}' is not in this record; choose from: {', '.join(worlds)}")
    return _through_source(record, worlds[world])


def _worlds(record: Mapping[str, Any]) -> dict[str, Affine]:
    """Points map from the world of each of the record's images to the source's."""
    targets = {"target": record["target_to_source"]} if record["target"] else {}
    extra = {name: found["to_source"] for name, found in record["extra_sources"].items()}
    return {name: np.array(found) for name, found in {"source": np.eye(4), **targets, **extra}.items()}


def _through_source(record: Mapping[str, Any], to_source: Affine) -> Affine:
    """Points map from the template's world, through the source's, to that of an image that `to_source` leads from."""
    return np.asarray(np.linalg.inv(to_source) @ np.linalg.inv(np.array(record["source_to_template"])))


def _grid_record(affine: Affine, shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"affine": affine.tolist(), "shape": list(shape)}


def _file_record(path: Path) -> dict[str, Any]:
    """Name, hash and what the BIDS sidecar tells of the acquisition; folders are left out, they may name people."""
    sidecar = read_sidecar(path)
    known = {key: sidecar[key] for key in _ACQUISITION if key in sidecar}
    return {"file": path.name, "sha256": sha256(path), "acquisition": known}


def _quality(alignment: Alignment) -> dict[str, Any]:
    information, overlap = alignment.mutual_information, alignment.overlap
    before = None if alignment.before is None else _fit(*alignment.before)
    return _fit(information, overlap) | {"displacement_mm": round(alignment.displacement_mm, 4), "before": before}


def _fit(information: float, overlap: float) -> dict[str, float]:
    return {"mutual_information_nats": round(information, 6), "overlap": round(overlap, 6)}
