"""What is written of a preprocessed pair: images with their sidecars, its record, and the picture to review it by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualflow.imaging.geometry import Volume, centred_affine
from dualflow.imaging.pipeline import Pair, template_centre
from dualflow.imaging.qc_figure import COLOURS, Image, save_figure
from dualflow.imaging.record import onto_grid, worlds
from dualflow.imaging.volume import write_volume
from dualflow.layout import TEMPLATE_SPACE, Layout, Scan
from dualflow.modalities import Modality, modality

_MNI = 4
_PICTURE_MM = 2.0


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
    centre, extent = np.array(template_centre()), np.array([192.0, 228.0, 204.0])
    i, j, k = (round(edge / _PICTURE_MM) for edge in extent)
    grid = centred_affine(centre, _PICTURE_MM, (i, j, k)), (i, j, k)
    brain = Volume(pair.native_mask.astype(np.float32), pair.source_volume.affine)
    source = onto_grid(pair.source_volume, pair.record, grid, world="source")
    others = [(name, modality(name), partner.volume) for name, partner in pair.extra.items()]
    if pair.target_volume is not None:
        others.append(("target", target_row, pair.target_volume))
    images = []
    for world, row, volume in others:
        moved = not np.array_equal(worlds(pair.record)[world], np.eye(4))
        before = onto_grid(volume, pair.record, grid, world="source") if moved else None
        after = onto_grid(volume, pair.record, grid, world=world)
        images.append(Image(row.tracer or row.suffix, after, before, COLOURS.get(row.datatype, "gray")))
    mask = onto_grid(brain, pair.record, grid, world="source") > 0.5
    save_figure(path, Image(source_row.suffix, source), images, mask)
