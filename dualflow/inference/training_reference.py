"""Reference of a model: what its training scans, and its predictions of them, look like.

It is stored beside the weights, and a new scan is judged against it (`dualflow.inference.verdict`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dualflow.commit import commit_text, sha256
from dualflow.data.dataset import PairDataset
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.errors import CheckpointError
from dualflow.imaging.geometry import BoolArray
from dualflow.imaging.input_figures import input_figures
from dualflow.inference.predict import Prediction, Predictor
from dualflow.inference.typicality import RATE, Typicality, conformal_threshold
from dualflow.layout import Layout, Scan
from dualflow.models.card import ModelCard
from dualflow.models.model_files import REFERENCE, REFERENCE_TENSORS
from dualflow.models.tensors import save_tensors

MIN_SCANS = 10
"""Smallest number of training scans that describe what is usual."""
SCANS = 60
"""Maximum number of training scans that are predicted for `OutputReference`."""
SAMPLES = 8
FLOOR = 0.03
"""Smallest standard deviation of a figure, relative to its median; smaller differences do not matter."""
SLACK = 2.0
"""The model has seen its training scans, so new scans have predictions that differ more."""
HIGHER_IS_WORSE = {
    "template_mi": -1.0,
    "dice": -1.0,
    "missing": 1.0,
    "outside": 1.0,
    "stretch": 1.0,
}
"""Figures of preprocessing that are part of typicality, each with the sign that makes higher worse."""


@dataclass(frozen=True)
class OutputReference:
    """Median, robust standard deviation and largest accepted distance of figures of predictions.

    Attributes:
        median: by figure.
        sd: by figure.
        threshold: SLACK times the conformal quantile of a training scan's largest distance, in standard deviations.
    """

    median: dict[str, float]
    sd: dict[str, float]
    threshold: float

    @classmethod
    def fit(cls, figures: Sequence[Mapping[str, float]]) -> Self:
        """Fit to the figures of predictions of training scans."""
        table = {name: np.array([row[name] for row in figures]) for name in figures[0]}
        median = {name: float(np.median(values)) for name, values in table.items()}
        sd = {
            name: float(max(1.4826 * np.median(np.abs(values - median[name])), FLOOR * abs(median[name]), 1e-6))
            for name, values in table.items()
        }
        law = cls(median, sd, np.inf)
        largest = np.array([max(law.distances(row).values()) for row in figures])
        return cls(median, sd, SLACK * conformal_threshold(largest, RATE)[0])

    def distances(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Distance of each figure from its median, in standard deviations."""
        return {name: abs(figures[name] - self.median[name]) / self.sd[name] for name in self.median}


@dataclass(frozen=True)
class Reference:
    """What a model's training scans look like.

    Attributes:
        typicality: of their preprocessed source.
        voxel_mm: largest voxel edge of their source.
        output: of their predictions.
        scans: number of training scans.
    """

    typicality: Typicality
    voxel_mm: float
    output: OutputReference
    scans: int

    @classmethod
    def fit(
        cls, predictor: Predictor, training: PairDataset, figures: Sequence[Mapping[str, float]], seed: int = 0
    ) -> Self:
        """Fit to a model's training scans.

        Args:
            predictor: the trained model.
            training: its training scans.
            figures: `imaging.input_figures` of each of them.
            seed: seed of the samples.
        """
        items = training.items
        typicality = fit_typicality(training, figures, predictor.card.preprocess.spacing_mm)
        chosen = items[:: -(-len(items) // SCANS)]
        outputs = []
        for item in chosen:
            prediction = predictor.predict(
                item["source"], item["side"], item["mask"], samples=SAMPLES, temperature=1.0, seed=seed, keep=0
            )
            outputs.append(output_figures(prediction, item["mask"][0].numpy()))
        voxel_mm = max(row["voxel_mm"] for row in figures)
        return cls(typicality, voxel_mm, OutputReference.fit(outputs), len(items))

    def save(self, folder: Path) -> tuple[str, list[Path]]:
        """Write the reference into a model's folder; return the digest for its card, and the files."""
        arrays, rest = self.typicality.to_state()
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        save_tensors(folder / REFERENCE_TENSORS, tensors)
        content = {
            "format": 1,
            "false_refusal_rate": RATE,
            "tensors_sha256": sha256(folder / REFERENCE_TENSORS),
            "scans": self.scans,
            "voxel_mm": self.voxel_mm,
            "output": {"median": self.output.median, "sd": self.output.sd, "threshold": self.output.threshold},
            "typicality": rest,
        }
        commit_text(folder / REFERENCE, json.dumps(content, indent=2) + "\n")
        return sha256(folder / REFERENCE), [folder / REFERENCE_TENSORS, folder / REFERENCE]


def load_reference(folder: Path, card: ModelCard) -> Reference | None:
    """Read the reference of a model; None if the model has none.

    Raises:
        CheckpointError: the files are damaged, or belong to another training.
    """
    if not card.reference_sha256:
        return None
    path, tensors = folder / REFERENCE, folder / REFERENCE_TENSORS
    try:
        if sha256(path) != card.reference_sha256:
            raise CheckpointError(f"{path}: does not match the hash in the model card; copy the folder again")
        content: dict[str, Any] = json.loads(path.read_text())
        if sha256(tensors) != content["tensors_sha256"]:
            raise CheckpointError(f"{tensors}: does not match the hash in {path.name}; copy the folder again")
        arrays = {name: tensor.numpy() for name, tensor in load_file(tensors).items()}
        return Reference(
            Typicality.from_state(arrays, content["typicality"]),
            float(content["voxel_mm"]),
            OutputReference(**content["output"]),
            int(content["scans"]),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the folder again, or train again") from error


def fit_typicality(training: PairDataset, figures: Sequence[Mapping[str, float]], spacing_mm: float) -> Typicality:
    """Fit typicality to the main source of training scans, with the figures of their preprocessing."""
    items = training.items
    return Typicality.fit(
        [item["source"][0].numpy() for item in items],
        [item["mask"][0].numpy() for item in items],
        {name: np.array([typicality_figures(row)[name] for row in figures]) for name in HIGHER_IS_WORSE},
        spacing_mm=spacing_mm,
        subjects=[Scan.parse(key).subject for key in training.scans],
    )


def scan_figures(layout: Layout, dataset: PairDataset) -> list[dict[str, float]]:
    """Figures of the preprocessing of each scan of a dataset.

    Raises:
        DataError: a scan's record is missing or has changed.
    """
    scans = (PreprocessedScan.from_manifest(layout, Scan.parse(key)) for key in dataset.scans)
    return [input_figures(scan.record()) for scan in scans]


def typicality_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of preprocessing that are part of typicality, higher is worse; NaN if unknown."""
    return {name: sign * figures.get(name, np.nan) for name, sign in HIGHER_IS_WORSE.items()}


def output_figures(prediction: Prediction, mask: BoolArray) -> dict[str, float]:
    """Figures of a prediction inside the mask `[D, H, W]`: mean, 1st and 99th percentile, and mean spread."""
    values = prediction.mean[mask]
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return {"mean": float(values.mean()), "p01": low, "p99": high, "spread": float(prediction.std[mask].mean())}
