"""Upper bounds of every predictor, and the registration error, from the truth of a simulated cohort."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from dualflow import cohort
from dualflow.commands.true_law import EXPECTED, drawn_targets, people_of, target_on_grid
from dualflow.commit import commit_text
from dualflow.config import Config, dump_sections
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import load_split, scan_digests, usable_pairs
from dualflow.data.tsv import table_text
from dualflow.evaluation.metrics import score
from dualflow.evaluation.study_metrics import TRUE_LAW
from dualflow.imaging.regions import region_map
from dualflow.imaging.volume import read_volume
from dualflow.inference.convert import scan_seed
from dualflow.inference.predict import Prediction
from dualflow.layout import Scan, sidecar_path, truth_path
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.progress import track

VOLUMES = {"attainable": EXPECTED, "oracle": "noisefree"}
"""Row of the table -> `desc` of the true volume that is scored as its prediction."""
STRIDE = 50
"""Registration error is measured at every STRIDE-th voxel of the brain."""


def evaluate_ceilings(config: Config) -> None:
    """Score expected and noise-free targets and draws of the true law as predictions, and measure registration.

    The tables are empty if the study has no truth.
    """
    layout, row = config.layout, modality(config.study.target)
    pairs = usable_pairs(config)
    test = load_split(config, pairs, "test", SideEncoder.fit(pairs, ()))
    regions, people = region_map(config.preprocess), people_of(config)
    scores, errors = [], []
    for item in track(test.items, "evaluate ceilings"):
        scan, mask, target = Scan.parse(item["scan"]), item["mask"][0].numpy(), item["target"][0].numpy()
        predictions = dict(_ceilings(config, scan, mask, people.get(scan.subject)))
        for name, prediction in predictions.items():
            values = score(prediction, target, mask, regions, row, attainable=predictions["attainable"].mean)
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
        inputs=scan_digests(layout, test.scans),
        config=dump_sections(config.evaluate, config.cohort),
    )


def _table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    # Rows without samples lack the columns of calibration.
    return table_text(pd.DataFrame(rows, columns=None if rows else columns))


def _ceilings(
    config: Config, scan: Scan, mask: NDArray[np.bool_], person: cohort.Person | None
) -> Iterator[tuple[str, Prediction]]:
    """The true volumes and draws of the true law on the model grid, normalised like targets."""
    row = modality(config.study.target)
    paths = {name: truth_path(config.bids, scan, row, desc) for name, desc in VOLUMES.items()}
    if not all(path.is_file() for path in paths.values()):
        return
    to_grid = target_on_grid(config, scan, mask)
    means = {name: to_grid(read_volume(path)) for name, path in paths.items()}
    for name, mean in means.items():
        yield name, Prediction(mean, np.zeros_like(mean))
    if person is not None:
        rng = np.random.default_rng(scan_seed(config.evaluate.seed, scan))
        samples = np.stack(list(drawn_targets(config, scan, mask, person, config.evaluate.samples, rng)))
        yield TRUE_LAW, Prediction(means["attainable"], samples.std(axis=0, ddof=1), samples)


def _registration_error(config: Config, scan: Scan) -> Iterator[dict[str, float]]:
    """Mean and largest distance in mm between the true and the estimated place of the brain's points in the target."""
    sidecar = sidecar_path(truth_path(config.bids, scan, modality(config.study.target), "noisefree"))
    if not sidecar.is_file():
        return
    true = np.array(json.loads(sidecar.read_text())["TargetToSource"])
    preprocessed = PreprocessedScan.from_manifest(config.layout, scan)
    estimated, brain = np.array(preprocessed.record()["target_to_source"]), preprocessed.volume("mask_native")
    points = apply_affine(brain.affine, np.argwhere(brain.array > 0.5)[::STRIDE].astype(np.float64))
    true_points, estimated_points = (apply_affine(np.linalg.inv(matrix), points) for matrix in (true, estimated))
    distance = np.linalg.norm(true_points - estimated_points, axis=-1)
    yield {"mean_mm": float(distance.mean()), "max_mm": float(distance.max())}
