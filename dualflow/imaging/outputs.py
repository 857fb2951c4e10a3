"""Writing of a preprocessed pair: images with sidecars, the record, and the quality-control figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualflow.imaging.affines import MNI
from dualflow.imaging.geometry import Volume, centred_affine
from dualflow.imaging.model_grid import template_centre
from dualflow.imaging.pair import PreprocessedPair
from dualflow.imaging.qc_figure import COLOURS, Image, save_figure
from dualflow.imaging.record import maps_to_source, native_codes, resample_to_grid
from dualflow.imaging.units import UNKNOWN
from dualflow.imaging.volume import write_volume
from dualflow.layout import TEMPLATE_SPACE, Layout, Scan
from dualflow.modalities import Modality, modality

_FIGURE_MM = 2.0
_IN_NATIVE = {
    "Description": "Preprocessed: normalised, without skull, interpolated once onto the source's own grid",
    "SkullStripped": True,
    "SpatialReference": "orig",
    "Resolution": "The source scan's own grid",
}
_DETAIL = {
    "Description": "Standard deviation of the normalised intensities within each voxel of the model grid, over parts "
    "of half its size",
    "Units": "arbitrary",
}
_MASK = {"Description": "Brain mask of the source scan", "Type": "Brain", "SkullStripped": False}


def write_pair(
    pair: PreprocessedPair, layout: Layout, scan: Scan, source_row: Modality, target_row: Modality
) -> dict[str, Path]:
    """Write a pair's images, sidecars, record and figure; return their paths by name."""
    grid = np.array(pair.record["grid"]["affine"])
    native, codes = pair.source_volume.affine, native_codes(pair.record)
    on_grid = {
        "Description": "Preprocessed: normalised, without skull, interpolated once onto the model grid",
        "SkullStripped": True,
        "SpatialReference": f"{TEMPLATE_SPACE}, affine",
        "Resolution": f"Model grid, {pair.record['spacing_mm']:g} mm isotropic",
    }
    detail = on_grid | _DETAIL
    files = {
        "source": layout.on_grid(scan, source_row),
        "source_detail": layout.detail(scan, source_row),
        "record": layout.record(scan, source_row),
        "mask": layout.mask_on_grid(scan, source_row),
        "mask_native": layout.mask_native(scan, source_row),
        "figure": layout.figure(scan, "qc"),
    }
    write_volume(
        files["source"], pair.source, grid, codes=MNI, sidecar=pair.record | on_grid | {"Units": source_row.unit}
    )
    write_volume(files["source_detail"], pair.detail, grid, codes=MNI, sidecar=detail)
    write_volume(files["mask"], pair.mask, grid, dtype=np.uint8, codes=MNI, sidecar=on_grid | _MASK)
    in_native = _IN_NATIVE | _MASK
    write_volume(files["mask_native"], pair.native_mask, native, dtype=np.uint8, codes=codes, sidecar=in_native)
    if pair.target is not None and pair.target_native is not None:
        metadata = _metadata(target_row, pair.record["target"])
        files |= {
            "target": layout.on_grid(scan, target_row),
            "target_native": layout.target_native(scan, source_row, target_row),
        }
        write_volume(files["target"], pair.target, grid, codes=MNI, sidecar=metadata | on_grid)
        write_volume(files["target_native"], pair.target_native, native, codes=codes, sidecar=metadata | _IN_NATIVE)
    for name, aligned in pair.extra.items():
        metadata = _metadata(modality(name), aligned.record)
        files[name] = layout.on_grid(scan, modality(name))
        write_volume(files[name], aligned.values, grid, codes=MNI, sidecar=metadata | on_grid)
        if aligned.detail is not None:
            files[f"{name}_detail"] = layout.detail(scan, modality(name))
            write_volume(files[f"{name}_detail"], aligned.detail, grid, codes=MNI, sidecar=detail)
    _save_figure(files["figure"], pair, source_row, target_row)
    return files


def _metadata(row: Modality, record: Mapping[str, Any]) -> dict[str, Any]:
    tracer = {"TracerName": row.tracer} if row.tracer else {}
    return {"Units": row.unit, "Intensity": record["intensity"], **tracer}


def _raw_unit(record: Mapping[str, Any]) -> str:
    """Unit of an image before its intensities are normalised; MR has none."""
    unit = str(record.get("pet", {}).get("unit", UNKNOWN))
    return "unit unknown" if "pet" in record and unit == UNKNOWN else unit if unit != UNKNOWN else Image.unit


def _save_figure(path: Path, pair: PreprocessedPair, source_row: Modality, target_row: Modality) -> None:
    """Save the quality-control figure, on a template-aligned grid fine enough to show a shift of a voxel."""
    centre, extent = np.array(template_centre()), np.array([192.0, 228.0, 204.0])
    i, j, k = (round(edge / _FIGURE_MM) for edge in extent)
    grid = centred_affine(centre, _FIGURE_MM, (i, j, k)), (i, j, k)
    brain = Volume(pair.native_mask.astype(np.float32), pair.source_volume.affine)
    source = resample_to_grid(pair.source_volume, pair.record, grid, world="source")
    volumes = [(name, modality(name), aligned.volume) for name, aligned in pair.extra.items()]
    if pair.target_volume is not None:
        volumes.append(("target", target_row, pair.target_volume))
    records = {"target": pair.record["target"], **pair.record["extra_sources"]}
    images = []
    for world, row, volume in volumes:
        moved = not np.array_equal(maps_to_source(pair.record)[world], np.eye(4))
        before = resample_to_grid(volume, pair.record, grid, world="source") if moved else None
        after = resample_to_grid(volume, pair.record, grid, world=world)
        images.append(
            Image(row.tracer or row.suffix, after, before, COLOURS.get(row.datatype, "gray"), _raw_unit(records[world]))
        )
    mask = resample_to_grid(brain, pair.record, grid, world="source") > 0.5
    save_figure(path, Image(source_row.suffix, source), images, mask)
