"""Upper bounds of every predictor, and the registration error, from the truth of a simulated cohort."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.commit import commit_text
from dualflow.config import Config, dump_sections
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.evaluation.metrics import score
from dualflow.evaluation.regions import region_map
from dualflow.imaging.geometry import apply_map
from dualflow.imaging.intensity import normalise
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.record import resample_to_grid
from dualflow.imaging.volume import read_volume
from dualflow.inference.predict import Prediction
from dualflow.layout import Scan, sidecar_path, truth_path
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.progress import track

CEILINGS = {"attainable": "expected", "oracle": "noisefree"}
"""Row of the table -> `desc` of the true volume that is scored as its prediction."""
STRIDE = 50
"""Registration error is measured at every STRIDE-th voxel of the brain."""


def evaluate_ceilings(config: Config) -> None:
    """Score expected and noise-free targets as predictions, and measure registration.

    The tables are empty if the study has no truth.
    """
    layout, row = config.layout, modality(config.study.target)
    pairs = usable_pairs(config)
    test = load_split(config, pairs, "test", SideEncoder.fit(pairs, ()))
    regions = region_map(config.preprocess)
    scores, errors = [], []
    for item in track(test.items, "evaluate ceilings"):
        scan, mask, target = Scan.parse(item["scan"]), item["mask"][0].numpy(), item["target"][0].numpy()
        for name, estimate in _ceilings(config, scan, mask):
            values = score(Prediction(estimate, np.zeros_like(estimate)), target, mask, regions, row)
            scores.append({"model": name, "seed": 0, "scan": scan.key, **values})
    for key in pairs.loc[pairs["target"] != "", "scan"]:
        errors += [{"scan": key, **distances} for distances in _registration_error(config, Scan.parse(key))]
    files = {"scans": layout.table("scans_ceilings"), "registration": layout.table("registration")}
    commit_text(files["scans"], _table(scores, ["model", "seed", "scan"]))
    commit_text(files["registration"], _table(errors, ["scan", "mean_mm", "max_mm"]))
    write_manifest(
        layout.manifest("evaluate/ceilings"),
        step="evaluate",
        outputs=files,
        inputs={},
        config=dump_sections(config.evaluate),
    )


def _table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    text: str = pd.DataFrame(rows, columns=list(rows[0]) if rows else columns).to_csv(sep="\t", index=False)
    return text


def _ceilings(config: Config, scan: Scan, mask: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The true volumes on the model grid, normalised like targets."""
    row, grid = modality(config.study.target), model_grid(config.preprocess)
    for name, desc in CEILINGS.items():
        path = truth_path(config.bids, scan, row, desc)
        if path.is_file():
            record = PreprocessedScan.from_manifest(config.layout, scan).record()
            raw = resample_to_grid(read_volume(path), record, grid, world="target")
            values, _ = normalise(raw, mask, row.normaliser, str(path))
            yield name, values


def _registration_error(config: Config, scan: Scan) -> Iterator[dict[str, float]]:
    """Mean and largest distance in mm between the true and the estimated place of the brain's points in the target."""
    sidecar = sidecar_path(truth_path(config.bids, scan, modality(config.study.target), "noisefree"))
    if not sidecar.is_file():
        return
    true = np.array(json.loads(sidecar.read_text())["TargetToSource"])
    preprocessed = PreprocessedScan.from_manifest(config.layout, scan)
    estimated, brain = np.array(preprocessed.record()["target_to_source"]), preprocessed.volume("mask_native")
    points = apply_map(brain.affine, np.argwhere(brain.array > 0.5)[::STRIDE].astype(np.float64))
    true_points, estimated_points = (apply_map(np.linalg.inv(matrix), points) for matrix in (true, estimated))
    distance = np.linalg.norm(true_points - estimated_points, axis=-1)
    yield {"mean_mm": float(distance.mean()), "max_mm": float(distance.max())}
