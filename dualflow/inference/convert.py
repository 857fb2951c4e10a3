"""Conversion of one preprocessed scan to synthetic volumes on its native grid, as BIDS derivatives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from dualflow import __version__
from dualflow.commit import digest_of, sha256
from dualflow.config import ConvertConfig
from dualflow.data.dataset import Item
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.imaging.record import to_native
from dualflow.imaging.volume import write_volume
from dualflow.inference.predict import Predictor
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.manifest import manifest_outputs, read_manifest, write_manifest
from dualflow.modalities import Modality
from dualflow.models.card import ModelCard

STEP = "convert"
"""Name of the step in manifests and in the quarantine table."""
DISCLAIMER = (
    "Synthetic: sampled from a model of the target given the source, not measured. It shows what is expected for "
    "people with such a source image, not this person's own findings. For research only, not for clinical use."
)


def convert_if_needed(
    predictor: Predictor,
    item: Item,
    layout: Layout,
    source_row: Modality,
    target_row: Modality,
    config: ConvertConfig,
) -> Path:
    """Convert a preprocessed scan unless that is done and unchanged; return its manifest.

    The volumes of an earlier conversion are removed first, because it may have kept more samples.
    """
    scan = Scan.parse(item["scan"])
    manifest, section = layout.manifest(f"{STEP}/{scan.key}"), config.model_dump(mode="json")
    inputs = conversion_inputs(predictor.card, layout, scan, item["side"])
    if read_manifest(manifest, inputs=inputs, config=section) is None:
        remove_volumes(manifest)
        preprocessed = PreprocessedScan.from_manifest(layout, scan)
        record, brain = preprocessed.record(), preprocessed.volume("mask_native").array > 0.5
        files = convert_scan(predictor, item, record, brain, layout, source_row, target_row, config)
        write_manifest(manifest, step=STEP, outputs=files, inputs=inputs, config=section)
    return manifest


def conversion_inputs(card: ModelCard, layout: Layout, scan: Scan, side: Tensor) -> dict[str, str]:
    """Digests that the conversion of a preprocessed scan depends on: model, scan and encoded side information `[S]`."""
    return {
        "model": card.weights_sha256,
        "scan": sha256(layout.scan_manifest(scan)),
        "side": digest_of(side.tolist()),
    }


def remove_volumes(manifest: Path) -> None:
    """Remove the volumes and sidecars of an earlier conversion of a scan."""
    record = read_manifest(manifest, verify=False)
    outputs = manifest_outputs(manifest, record) if record else {}
    for volume, _ in outputs.values():
        volume.unlink(missing_ok=True)
        sidecar_path(volume).unlink(missing_ok=True)


def convert_scan(
    predictor: Predictor,
    item: Item,
    record: Mapping[str, Any],
    brain: np.ndarray[Any, Any],
    layout: Layout,
    source_row: Modality,
    target_row: Modality,
    config: ConvertConfig,
) -> dict[str, Path]:
    """Write point estimate, mean, standard deviation and some samples of one scan; return the files by BIDS `desc`.

    Each volume is interpolated once, from the model grid to the native grid, and masked with `brain` `[I, J, K]` there.
    """
    scan = Scan.parse(item["scan"])
    prediction = predictor.predict(
        item["source"],
        item["side"],
        item["mask"],
        samples=config.samples,
        temperature=config.temperature,
        seed=scan_seed(config.seed, scan),
        keep=config.keep_samples,
    )
    volumes = {"synth": prediction.mean, "synthstd": prediction.std}
    if prediction.samples is not None and prediction.sample_mean is not None:
        volumes["synthmean"] = prediction.sample_mean
        for index, sample in enumerate(prediction.samples, 1):
            volumes[f"synth{index:02d}"] = sample
    files = {}
    for desc, volume in volumes.items():
        # Interpolation with the zeros outside the mask would darken the edge of the brain.
        native, affine = to_native(fill_outside(volume, item["mask"][0].numpy()), record, background=0.0)
        native = np.where(brain, native, np.float32(0))
        files[desc] = layout.synthetic(scan, source_row, target_row, desc)
        write_volume(files[desc], native, affine, sidecar=_sidecar(desc, predictor, item, target_row, config))
    return files


def fill_outside(volume: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Replace voxels `[..., D, H, W]` outside the mask `[D, H, W]` with the nearest value inside it."""
    if not mask.any():
        return volume
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    filled: np.ndarray[Any, Any] = volume[(..., *nearest)]
    return filled


def scan_seed(seed: int, scan: Scan) -> int:
    """Seed that depends on `seed` and this scan only, so that its samples do not depend on the other scans."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{scan.key}".encode()).digest()[:4], "little")


_DESCRIPTIONS = {
    "synth": "Point estimate: the expected target given source and side information",
    "synthmean": "Mean of the samples",
    "synthstd": "Standard deviation of the samples, per voxel",
}


def _sidecar(desc: str, predictor: Predictor, item: Item, row: Modality, config: ConvertConfig) -> dict[str, Any]:
    card = predictor.card
    return {
        "Description": f"{_DESCRIPTIONS.get(desc, 'One joint sample')}. {DISCLAIMER}",
        "Synthetic": True,
        "SyntheticModel": {
            key: getattr(card, key) for key in ("name", "seed", "dualflow", "data_digest", "weights_sha256")
        },
        "NumberOfSamples": config.samples,
        "Temperature": config.temperature,
        "Seed": config.seed,
        "Units": row.unit,
        "SkullStripped": True,
        "SpatialReference": "orig",
        "Resolution": "The source scan's own grid",
        "SideInformation": dict(
            zip(
                card.side.names,
                [None if value != value else round(float(value), 4) for value in item["side"]],
                strict=True,
            )
        ),
        "GeneratedBy": f"dualflow {__version__}",
    } | ({"TracerName": row.tracer} if row.tracer else {})
