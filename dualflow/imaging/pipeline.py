"""The pair pipeline: raw scans to the model grid, by one interpolation each.

source: read -> brain mask -> bias field -> affine to the template -> model grid -> normalise -> mask
target: read -> rigid to the source -> (bias field) -> model grid through source and template -> normalise -> mask

Further sources go the target's way. What was done is in the record.
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
from dualflow.imaging import intensity
from dualflow.imaging.bias import correct_bias
from dualflow.imaging.geometry import BoolArray, FloatArray, Grid, Volume, centred_affine, resample
from dualflow.imaging.mask import brain_mask, brain_volume_ml, own_mask
from dualflow.imaging.mask_qc import check, figures, likeness_of, shape_of
from dualflow.imaging.pet import read_scan
from dualflow.imaging.record import file_record, grid_record, onto_grid, quality_record, through_source
from dualflow.imaging.reference import reference_region
from dualflow.imaging.registration import Alignment, register_affine, register_rigid, trust_alignment
from dualflow.imaging.stopwatch import Stopwatch
from dualflow.modalities import Modality, modality

_LIBRARIES = ("SimpleITK", "deepbet", "monai", "nibabel", "nilearn", "numpy", "scipy", "torch")


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
def template_centre() -> tuple[float, float, float]:
    """World middle of the bounding box of the template's brain."""
    mask = nilearn.datasets.load_mni152_brain_mask(resolution=1)
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    middle = mask.affine @ np.append((inside.min(axis=0) + inside.max(axis=0)) / 2, 1)
    return float(middle[0]), float(middle[1]), float(middle[2])


def model_grid(config: PreprocessConfig) -> Grid:
    """Affine and shape of the model grid: RAS-aligned, isotropic, centred on the template's brain."""
    return centred_affine(np.array(template_centre()), config.spacing_mm, config.shape), config.shape


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
        "grid": grid_record(affine, shape),
        "native_grid": grid_record(*scan.grid),
        "source_to_template": to_template.points_map.tolist(),
        "source": file_record(source) | about,
        "brain_mask": {"file": mask.name, "sha256": sha256(mask)} if mask else {"made_by": "deepbet"},
        "extra_sources": {},
        "target": None,
        "spacing_mm": config.spacing_mm,
        "versions": {"dualflow": __version__, **{name: version(name) for name in _LIBRARIES}},
        "quality": {
            "brain_ml": brain_volume_ml(native_mask, scan),
            "brain_mask": figures(shape_of(native_mask, scan.affine), likeness),
            "source_to_template": quality_record(to_template),
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
        "quality": pair.record["quality"] | {f"{name}_to_source": quality_record(partner.alignment)},
    }
    return replace(pair, record=record, extra={**pair.extra, name: partner})


def _add_target(pair: Pair, path: Path, row: Modality, config: PreprocessConfig) -> Pair:
    partner, source = _bring(pair, path, row, config), pair.source_volume
    record = pair.record | {
        "target_to_source": partner.alignment.points_map.tolist(),
        "target": partner.record,
        "quality": pair.record["quality"] | {"target_to_source": quality_record(partner.alignment)},
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
        way = through_source(pair.record, alignment.points_map)
        raw = resample(volume, affine, shape, way, background=np.nan)
        values, fitted = _normalised(raw, pair.mask, row, config, about, path)
    return Partner(values, volume, alignment, file_record(path) | about | {"intensity": fitted})


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
