"""Scores in native space: converted point estimates against measured targets, on the grid of each source scan."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dualflow.arrays import Bools, Floats
from dualflow.config import Config
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.errors import DataError
from dualflow.evaluation.measures import Context
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.statistics import KEYS
from dualflow.imaging.intensity import scored_voxels
from dualflow.imaging.regions import region_map
from dualflow.imaging.volume import read_volume
from dualflow.layout import Scan
from dualflow.modalities import modality
from dualflow.progress import track

NATIVE_METRICS = ("mae", "rmse", "psnr", "pearson_r")
"""Rows of METRICS that read voxels alone, so that they apply to any grid."""


def native_scores(config: Config, scans: Sequence[str]) -> pd.DataFrame:
    """Score the conversions of the main model with its first seed.

    Args:
        config: configuration of the study.
        scans: keys of held-out scans.

    Returns:
        A row per scan whose conversion and measured target can be read: model, seed, scan and NATIVE_METRICS.
    """
    context = Context(modality(config.study.target), region_map(config.preprocess))
    rows = []
    for key in track(scans, "score in native space"):
        try:
            images = _native_images(config, Scan.parse(key))
        except DataError:
            continue  # a conversion that failed has its reason in conversion.tsv
        scores = [METRICS[name].function(*images, context) for name in NATIVE_METRICS]
        rows.append((config.model.preset, config.train.seeds[0], key, *scores))
    return pd.DataFrame(rows, columns=[*KEYS, *NATIVE_METRICS])


def _native_images(config: Config, scan: Scan) -> tuple[Floats, Floats, Bools]:
    """Point estimate, measured target and the voxels to score `[I, J, K]`, on the grid of the source scan."""
    source, target = modality(config.study.source), modality(config.study.target)
    preprocessed = PreprocessedScan.from_manifest(config.layout, scan)
    real, mask = (preprocessed.volume(name).array for name in ("target_native", "mask_native"))
    estimate = read_volume(config.layout.synthetic(scan, source, target, "synth")).array
    return estimate, real, scored_voxels(real, mask > 0.5)
