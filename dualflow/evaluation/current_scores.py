"""Whether the stored scores of a training are those that the workflow would compute now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from dualflow.config import Config, dump_sections
from dualflow.data.study_pairs import scan_digests, usable_pairs
from dualflow.data.tsv import read_typed_table
from dualflow.layout import Layout, Scan, training_key
from dualflow.manifest import manifest_outputs, read_manifest

MODEL = "model"
"""Name of the weights among the inputs of an evaluation; the others are keys of scans."""


@dataclass(frozen=True)
class CurrentScans:
    """The scans of a study that its models learn from and are scored on now.

    Attributes:
        learnt: hash of the manifest of each training and validation scan.
        test: that of each test scan.
    """

    learnt: Mapping[str, str]
    test: Mapping[str, str]

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read the index and the manifests of the preprocessed scans."""
        split = usable_pairs(config).set_index("scan")["split"]
        learnt = split.index[split.isin(["train", "validation"])]
        return cls(scan_digests(config.layout, learnt), scan_digests(config.layout, split.index[split == "test"]))


def score_inputs(weights: str, test: Mapping[str, str]) -> dict[str, str]:
    """Return the inputs that the manifest of an evaluation names: the weights, and the test scans by their hashes."""
    return {MODEL: weights, **test}


def read_scores(layout: Layout, path: Path, weights: str) -> dict[str, Any] | None:
    """Return the manifest of an evaluation; None if it is of other weights, or a test scan has changed since.

    Scans whose preprocessed volumes were removed count as unchanged.

    Args:
        layout: of the study.
        path: the manifest.
        weights: hash of the weights.
    """
    recorded = read_manifest(path, verify=False)
    if recorded is None:
        return None
    scans = [key for key in recorded["inputs"] if key != MODEL]
    present = [key for key in scans if layout.scan_manifest(Scan.parse(key)).is_file()]
    return read_manifest(path, inputs=recorded["inputs"] | score_inputs(weights, scan_digests(layout, present)))


def current_scores(
    config: Config, scans: CurrentScans, name: str, seed: int, weights: str
) -> dict[str, pd.DataFrame] | None:
    """Return the tables `scans` and `stress` of a training's scores; None if they are not those of today's study.

    They belong to the stored weights, to what the models learn from now, to the test scans and to the options of the
    evaluation, and no later revision of either step has replaced them. Without a stress test its table is absent.

    Args:
        config: of the study.
        scans: of the study.
        name: of the model.
        seed: of the training.
        weights: hash of the stored weights.
    """
    layout = config.layout
    path = layout.manifest(f"evaluate/{training_key(name, seed)}")
    scored = read_manifest(path, inputs=score_inputs(weights, scans.test))
    if scored is None or read_manifest(layout.training_manifest(name, seed), inputs=scans.learnt) is None:
        return None
    if _options(scored["config"]) != _options(dump_sections(config.evaluate, config.convert)):
        return None
    files = manifest_outputs(path, scored)
    names = [name for name in ("scans", "stress") if name in files]
    return {str(name): read_typed_table(files[name].path) for name in names}


def current_ceilings(config: Config, scans: CurrentScans) -> pd.DataFrame | None:
    """Return the scores of the limits that a simulation knows; None if they are not those of today's study.

    Args:
        config: of the study.
        scans: of the study.
    """
    path = config.layout.manifest("evaluate/ceilings")
    scored = read_manifest(path, inputs=scans.test)
    if scored is None or _of_limits(scored["config"]) != _of_limits(dump_sections(config.evaluate, config.cohort)):
        return None
    return read_typed_table(manifest_outputs(path, scored)["scans"].path)


def _options(sections: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The options that change scores: all of the evaluation but `bootstrap`, and the temperature of the samples."""
    return _evaluation(sections), sections["convert"]["temperature"]


def _of_limits(sections: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that change the scores of limits."""
    return _evaluation(sections), sections["cohort"]


def _evaluation(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the evaluation but the resamples of intervals, which change no score."""
    return {**sections["evaluate"], "bootstrap": None}
