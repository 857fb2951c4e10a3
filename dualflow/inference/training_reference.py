"""Reference of a model: what its training scans, and its predictions of them, look like.

It is stored beside the weights, and a new scan is judged against it (`dualflow.inference.verdict`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from dualflow.arrays import Bools
from dualflow.commit import commit_text
from dualflow.data.dataset import PairDataset
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.digests import sha256
from dualflow.errors import CheckpointError
from dualflow.imaging.input_figures import input_figures
from dualflow.inference.predict import Prediction, Predictor
from dualflow.inference.typicality import MIN_PEOPLE, RATE, Typicality, conformal_threshold, largest_by_subject
from dualflow.layout import Layout, Scan
from dualflow.models.card import ModelCard
from dualflow.models.model_files import MODEL_FILES, REFERENCE, REFERENCE_TENSORS, read_limited
from dualflow.models.tensors import check_finite, save_tensors

SCANS = 60
"""Maximum number of training scans that are predicted for `Reference.output`."""
SAMPLES = 8
FLOOR = 0.03
"""Smallest standard deviation of a figure, relative to its median; smaller differences do not matter."""
SLACK = 2.0
"""The model has seen its training scans, so new scans have predictions that differ more."""
REGISTRATION = {
    "template_mi": -1,
    "template_dice": -1,
    "coverage": -1,
    "mask_missing": 1,
    "mask_outside": 1,
    "mask_stretch": 1,
}
"""Figures of the registration with the template, and the side of the training scans on which one is unusual."""
OUTPUT = {"mean": 0, "p01": 0, "p99": 0, "spread": 0}
"""Figures of a prediction, unusual on both sides."""


@dataclass(frozen=True)
class FigureRanges:
    """Where figures of the training scans lie, and from where on a new scan is unusual.

    Attributes:
        median: by figure.
        sd: robust standard deviation by figure.
        side: by figure; 1 if only high values are unusual, -1 if only low ones, 0 if both.
        threshold: SLACK times the conformal quantile of a training person's largest distance, in standard deviations.
    """

    median: dict[str, float]
    sd: dict[str, float]
    side: dict[str, int]
    threshold: float

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, float]], side: Mapping[str, int], subjects: Sequence[str]) -> Self:
        """Fit to figures of training scans; one that fewer than MIN_PEOPLE scans have is left out.

        Args:
            rows: figures of each scan; NaN is unknown.
            side: the figures to fit, and the side on which each is unusual.
            subjects: subject of each scan.
        """
        from scipy.stats import median_abs_deviation  # half a second to import

        table = {name: np.array([row[name] for row in rows if np.isfinite(row[name])]) for name in side}
        table = {name: known for name, known in table.items() if len(known) >= MIN_PEOPLE}
        median = {name: float(np.median(values)) for name, values in table.items()}
        sd = {
            name: float(max(median_abs_deviation(values, scale="normal"), FLOOR * abs(median[name]), 1e-3))
            for name, values in table.items()
        }
        side = {name: side[name] for name in table}
        ranges = cls(median, sd, side, np.inf)
        largest = np.array([max(ranges.distances(row).values(), default=0.0) for row in rows])
        return cls(median, sd, side, SLACK * conformal_threshold(largest_by_subject(largest, subjects), RATE)[0])

    def distances(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Distance of each known figure from its median, in standard deviations; 0 or less on a side that is usual."""
        deviations = {name: (figures[name] - self.median[name]) / self.sd[name] for name in self.median}
        return {
            name: self.side[name] * value if self.side[name] else abs(value)
            for name, value in deviations.items()
            if np.isfinite(value)
        }

    def usual(self, name: str) -> tuple[float, float]:
        """The range of a figure that is usual."""
        width, side = self.threshold * self.sd[name], self.side[name]
        return (
            -np.inf if side > 0 else self.median[name] - width,
            np.inf if side < 0 else self.median[name] + width,
        )


@dataclass(frozen=True)
class Reference:
    """What a model's training scans look like.

    Attributes:
        typicality: of their preprocessed sources, by modality, the main source first.
        registration: figures of the main source's registration with the template.
        voxel_mm: largest voxel edge of the main source.
        output: figures of their predictions.
        scans: number of training scans.
    """

    typicality: dict[str, Typicality]
    registration: FigureRanges
    voxel_mm: float
    output: FigureRanges
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
        study, spacing_mm = predictor.card.study, predictor.card.preprocess.spacing_mm
        names = (study.source, *study.extra_sources)
        typicality = {
            name: fit_typicality(training, spacing_mm, channel, RATE / len(names)) for channel, name in enumerate(names)
        }
        chosen = items[:: -(-len(items) // SCANS)]
        outputs = []
        for item in chosen:
            prediction = predictor.predict(
                item["source"], item["side"], item["mask"], samples=SAMPLES, temperature=1.0, seed=seed, keep=0
            )
            outputs.append(output_figures(prediction, item["mask"][0].numpy()))
        voxel_mm = max(row["voxel_mm"] for row in figures)
        registration = FigureRanges.fit(figures, REGISTRATION, training.subjects)
        output = FigureRanges.fit(outputs, OUTPUT, [Scan.parse(item["scan"]).subject for item in chosen])
        return cls(typicality, registration, voxel_mm, output, len(items))

    def save(self, folder: Path) -> tuple[str, list[Path]]:
        """Write the reference into a model's folder; return the digest for its card, and the files."""
        states = {name: typicality.to_state() for name, typicality in self.typicality.items()}
        main, *further = states
        tensors = {
            _prefix(name, main) + part: torch.from_numpy(np.ascontiguousarray(array))
            for name, (arrays, _) in states.items()
            for part, array in arrays.items()
        }
        save_tensors(folder / REFERENCE_TENSORS, tensors)
        content = {
            "format": 1,
            "false_refusal_rate": RATE,
            "tensors_sha256": sha256(folder / REFERENCE_TENSORS),
            "scans": self.scans,
            "voxel_mm": self.voxel_mm,
            "registration": asdict(self.registration),
            "output": asdict(self.output),
            "typicality": states[main][1],
            "further_sources": {name: states[name][1] for name in further},
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
        content: dict[str, Any] = json.loads(read_limited(path, MODEL_FILES[REFERENCE].limit))
        if sha256(tensors) != content["tensors_sha256"]:
            raise CheckpointError(f"{tensors}: does not match the hash in {path.name}; copy the folder again")
        state = load_file(tensors)
        check_finite(tensors, state)
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        main = card.study.source
        rests = {main: content["typicality"], **content.get("further_sources", {})}
        if unjudged := [name for name in card.study.extra_sources if name not in rests]:  # of an older model
            print(
                f"warning: {path}: scans are judged by their {main} alone, not by {', '.join(unjudged)}; "
                "train again to judge all",
                file=sys.stderr,
            )
        return Reference(
            {name: Typicality.from_state(_part(arrays, _prefix(name, main)), rest) for name, rest in rests.items()},
            FigureRanges(**content["registration"]),
            float(content["voxel_mm"]),
            FigureRanges(**content["output"]),
            int(content["scans"]),
        )
    except CheckpointError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the folder again, or train again") from error


def _prefix(source: str, main: str) -> str:
    """What the names of a source's tensors begin with."""
    return "" if source == main else f"{source}/"


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def fit_typicality(training: PairDataset, spacing_mm: float, channel: int = 0, rate: float = RATE) -> Typicality:
    """Fit typicality to a source of training scans.

    Figures of the registration stay apart: their long tails would raise the threshold of all detectors. The mask is
    judged with the main source, which it is made from.

    Args:
        training: the training scans.
        spacing_mm: spacing of the model grid.
        channel: of the source, 0 for the main one.
        rate: share of typical scans that may be refused, and of scans without lesions that may be flagged.
    """
    return Typicality.fit(
        [item["source"][channel].numpy() for item in training.items],
        [item["mask"][0].numpy() for item in training.items],
        spacing_mm=spacing_mm,
        subjects=training.subjects,
        rate=rate,
        leave_out=("mask",) if channel else (),
    )


def has_enough_people(training: PairDataset) -> bool:
    """Whether the training people are enough to describe what is usual; several scans of one person count once."""
    return len(set(training.subjects)) >= MIN_PEOPLE


def scan_figures(layout: Layout, dataset: PairDataset) -> list[dict[str, float]]:
    """Figures of the preprocessing of each scan of a dataset.

    Raises:
        DataError: a scan's record is missing or has changed.
    """
    scans = (PreprocessedScan.from_manifest(layout, Scan.parse(key)) for key in dataset.scans)
    return [input_figures(scan.record()) for scan in scans]


def output_figures(prediction: Prediction, mask: Bools) -> dict[str, float]:
    """Figures of a prediction inside the mask `[D, H, W]`: mean, 1st and 99th percentile, and mean spread."""
    values = prediction.mean[mask]
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return {"mean": float(values.mean()), "p01": low, "p99": high, "spread": float(prediction.std[mask].mean())}
