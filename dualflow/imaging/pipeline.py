"""Preprocessing of one scan: raw images to the model grid, with one interpolation each.

source: load -> brain mask -> bias field -> affine to the template -> model grid -> normalise -> mask
target: load -> rigid to the source -> (bias field) -> model grid through source and template -> normalise -> mask

Further sources are processed like the target. The record holds every transform and parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualflow import __version__
from dualflow.arrays import Bools, Singles
from dualflow.config import PreprocessConfig
from dualflow.imaging import intensity
from dualflow.imaging.bias import correct_bias
from dualflow.imaging.detail import detail_on_grid
from dualflow.imaging.geometry import Affine, Volume, resample
from dualflow.imaging.input_figures import TURNED_DEG
from dualflow.imaging.mask import brain_mask, brain_volume_ml, study_mask
from dualflow.imaging.mask_qc import MaskShape, check_metrics, compare_with_template, mask_metrics
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.pair import AlignedImage, PreprocessedPair
from dualflow.imaging.pet import read_scan
from dualflow.imaging.raw_image import RawImage
from dualflow.imaging.record import (
    file_record,
    grid_record,
    native_grid_record,
    quality_record,
    resample_to_grid,
    template_to_image,
)
from dualflow.imaging.reference import reference_region
from dualflow.imaging.registration import Alignment, assume_aligned, register_affine, register_rigid
from dualflow.imaging.stopwatch import Stopwatch
from dualflow.modalities import Modality, modality

WHITE_MATTER = "cerebral_white"
_LIBRARIES = ("SimpleITK", "deepbet", "monai", "nibabel", "nilearn", "numpy", "scipy", "torch")


def preprocess_pair(
    source: RawImage,
    target: RawImage | None,
    source_row: Modality,
    target_row: Modality,
    config: PreprocessConfig,
    *,
    extra: Mapping[str, RawImage] | None = None,
    mask: RawImage | None = None,
) -> PreprocessedPair:
    """Bring a source scan, and its target if it has one, onto the model grid.

    Args:
        source: the image that the brain mask and the registration with the template are computed on.
        target: the image to learn.
        source_row: modality of the source.
        target_row: modality of the target.
        config: preprocessing options.
        extra: further sources, by modality.
        mask: the study's brain mask on the source's grid; None computes one with deepbet.

    Raises:
        DataError: a scan is invalid, shows no brain, or cannot be aligned; subclass and message give the reason.
    """
    grid, clock = model_grid(config), Stopwatch()
    with clock("read"):
        scan, pet_record = read_scan(source, source_row, config)
    brain = _in_template(scan, mask, source_row, config, clock)
    if mask is None and brain.to_template.rotation_deg > TURNED_DEG:
        brain = _in_template(scan, mask, source_row, config, clock, upright=brain.to_template.rotation)
    corrected, native_mask, shape, to_template = brain
    with clock("template"):
        agreement = compare_with_template(native_mask, scan.affine, to_template.points_map)
        check_metrics(agreement, mask.path if mask else source.path)
    record: dict[str, Any] = {
        "grid": grid_record(*grid),
        "native_grid": native_grid_record(scan),
        "source_to_template": to_template.points_map.tolist(),
        "source": file_record(source) | pet_record,
        "brain_mask": {"file": mask.path.name, "sha256": mask.digest.sha256} if mask else {"made_by": "deepbet"},
        "extra_sources": {},
        "target": None,
        "spacing_mm": config.spacing_mm,
        "versions": _versions(),
        "quality": {
            "brain_ml": brain_volume_ml(native_mask, scan),
            "brain_mask": mask_metrics(shape, agreement),
            "source_to_template": quality_record(to_template),
        },
    }
    with clock("grid"):
        raw = resample_to_grid(corrected, record, grid, world="source", background=np.nan)
        mask_volume = Volume(native_mask.astype(np.float32), scan.affine)
        mask_on_grid = resample_to_grid(mask_volume, record, grid, world="source") > 0.5
        values, fit = normalise_on_grid(raw, mask_on_grid, source_row, config, source.path)
        record["source"]["intensity"] = fit | _reference_unit(source_row, pet_record)
        detail = detail_on_grid(corrected, grid, template_to_image(record, np.eye(4)), fit, mask_on_grid)
    pair = PreprocessedPair(values, detail, None, mask_on_grid, record, corrected, native_mask, None, clock=clock)
    for name, image in (extra or {}).items():
        pair = _add_source(pair, name, image, config)
    return pair if target is None else _add_target(pair, target, target_row, config)


class _SourceInTemplate(NamedTuple):
    """A source, corrected for its bias field, with its brain mask, and its registration with the template."""

    volume: Volume
    mask: Bools
    shape: MaskShape
    to_template: Alignment


def _in_template(
    scan: Volume,
    mask: RawImage | None,
    row: Modality,
    config: PreprocessConfig,
    clock: Stopwatch,
    *,
    upright: Affine | None = None,
) -> _SourceInTemplate:
    """Mask a source's brain, correct its bias field and register it with the template.

    Args:
        scan: the source.
        mask: the study's brain mask; None computes one.
        row: modality of the source.
        config: preprocessing options.
        clock: measures each step.
        upright: rotation `[3, 3]` that turns the head upright for the mask's network, which fails on parts of turned
            brains; None trusts the header.
    """
    turn = np.eye(4)
    if upright is not None:
        turn[:3, :3] = upright
    with clock("brain_mask"):
        native_mask, shape = (
            study_mask(mask.path, scan) if mask else brain_mask(replace(scan, affine=turn @ scan.affine))
        )
    with clock("bias_field"):
        corrected = correct_bias(scan, native_mask) if config.bias_field and row.bias_field else scan
    with clock("template"):
        return _SourceInTemplate(corrected, native_mask, shape, register_affine(corrected, native_mask))


def _add_source(pair: PreprocessedPair, name: str, image: RawImage, config: PreprocessConfig) -> PreprocessedPair:
    aligned = _align(pair, image, modality(name), config)
    with pair.clock("grid"):
        points_map = template_to_image(pair.record, aligned.alignment.points_map)
        scale = aligned.record["intensity"]
        detail = detail_on_grid(aligned.volume, model_grid(config), points_map, scale, pair.mask)
    image_record = aligned.record | {"to_source": aligned.alignment.points_map.tolist()}
    record = pair.record | {
        "extra_sources": pair.record["extra_sources"] | {name: image_record},
        "quality": pair.record["quality"] | {f"{name}_to_source": quality_record(aligned.alignment)},
    }
    return replace(pair, record=record, extra={**pair.extra, name: replace(aligned, detail=detail)})


def _add_target(pair: PreprocessedPair, image: RawImage, row: Modality, config: PreprocessConfig) -> PreprocessedPair:
    aligned, source = _align(pair, image, row.as_target(), config), pair.source_volume
    record = pair.record | {
        "target_to_source": aligned.alignment.points_map.tolist(),
        "target": aligned.record,
        "quality": pair.record["quality"] | {"target_to_source": quality_record(aligned.alignment)},
    }
    with pair.clock("grid"):
        to_target = np.linalg.inv(aligned.alignment.points_map)
        native = resample(aligned.volume, *source.grid, points_map=to_target, background=np.nan)
        filled, in_view = _zero_beyond_view(native, row)
        values = intensity.apply(filled, aligned.record["intensity"], pair.native_mask)
        target_native = _marked_beyond_view(values, pair.native_mask, in_view, row)
    return replace(
        pair,
        target=aligned.values,
        record=record,
        target_native=target_native,
        target_volume=aligned.volume,
    )


def _align(pair: PreprocessedPair, image: RawImage, row: Modality, config: PreprocessConfig) -> AlignedImage:
    """Align an image with the pair's source, and interpolate it once onto the model grid."""
    source, clock = pair.source_volume, pair.clock
    with clock("read"):
        volume, pet_record = read_scan(image, row, config)
    align = assume_aligned if config.aligned else register_rigid
    with clock("align"):
        alignment = align(volume, source, pair.native_mask)
    if config.bias_field and row.bias_field:
        with clock("bias_field"):
            brain = Volume(pair.native_mask.astype(np.float32), source.affine)
            mask = resample(brain, *volume.grid, points_map=alignment.points_map) > 0.5
            volume = correct_bias(volume, mask)
    with clock("grid"):
        points_map = template_to_image(pair.record, alignment.points_map)
        raw = resample(volume, *model_grid(config), points_map, background=np.nan)
        values, fit = normalise_on_grid(raw, pair.mask, row, config, image.path)
        alignment = replace(alignment, overlap=alignment.overlap - float(padding(raw, row)[pair.mask].mean()))
    intensity_record = {"intensity": fit | _reference_unit(row, pet_record)}
    return AlignedImage(values, volume, alignment, file_record(image) | pet_record | intensity_record)


def normalise_on_grid(
    raw: Singles, brain: Bools, row: Modality, config: PreprocessConfig, path: Path
) -> tuple[Singles, dict[str, Any]]:
    """Normalise an image on the model grid, and return its intensity record.

    Voxels outside its field of view (NaN or padding) do not enter the fit; those of PET and blood flow hold
    `intensity.INSIDE`.

    Args:
        raw: interpolated image `[D, H, W]`.
        brain: brain mask of that size.
        row: modality of the image.
        config: the reference region of PET, and the grid.
        path: the image's path in errors.

    Raises:
        IntensityError: the values do not allow it, or too few voxels of the reference region are in view.
    """
    filled, in_view = _zero_beyond_view(raw, row)
    region, region_record = brain & in_view, dict[str, Any]()
    if row.normaliser == "suvr":
        reference = reference_region(config.reference_region, model_grid(config), brain, in_view, path)
        region, region_record = reference.mask, reference.record
    elif row.normaliser == "white_matter":
        region = reference_region(WHITE_MATTER, model_grid(config), brain, in_view, path).mask
    values, fit = intensity.normalise(filled, brain, row.normaliser, str(path), region)
    return _marked_beyond_view(values, brain, in_view, row), fit | region_record


def padding(raw: Singles, row: Modality) -> Bools:
    """Voxels that an image shows no head in, although its grid holds them, with the size of `raw`.

    Programs that interpolate an image onto another grid, such as that of an MR, write 0 beyond its field of view.

    Args:
        raw: interpolated image.
        row: modality of the image.
    """
    return np.asarray((raw == 0) & row.never_zero)


def _zero_beyond_view(raw: Singles, row: Modality) -> tuple[Singles, Bools]:
    """An interpolated image with 0 in place of the NaN beyond its grid, and the voxels that it shows."""
    in_view = np.isfinite(raw) & ~padding(raw, row)
    return np.where(in_view, raw, np.float32(0)), in_view


def _marked_beyond_view(values: Singles, brain: Bools, in_view: Bools, row: Modality) -> Singles:
    """Normalised values with INSIDE in the brain's voxels that a PET or blood flow does not show.

    A normalisation by percentiles has turned their 0 into another value.
    """
    return np.where(brain & ~in_view, intensity.INSIDE, values) if row.never_zero else values


def _reference_unit(row: Modality, pet_record: Mapping[str, Any]) -> dict[str, Any]:
    """The unit of a PET's reference value, for its intensity record."""
    return {"reference_unit": pet_record["pet"]["unit"]} if row.normaliser == "suvr" else {}


@cache
def _versions() -> dict[str, str]:
    return {"dualflow": __version__, **{name: version(name) for name in _LIBRARIES}}
