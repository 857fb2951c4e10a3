"""Whether the stored scores of a training are those that the workflow would compute now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from dualflow.config import Config, dump_sections
from dualflow.data.index import read_pairs
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import learning_digest, scan_digests, scan_values, usable_pairs
from dualflow.data.tsv import read_typed_table
from dualflow.digests import digest_of
from dualflow.layout import Layout, Scan, training_key
from dualflow.manifest import manifest_outputs, read_manifest
from dualflow.models.card import ModelCard
from dualflow.revisions import REVISIONS

MODEL, SIDE = "model", "side"
"""Names of the weights and of the side values among the inputs of an evaluation; the others are keys of scans."""


@dataclass(frozen=True)
class CurrentScans:
    """The scans of a study that its models learn from and are scored on now.

    Attributes:
        learnt: digest of the training and validation scans with their side values, as in the card of a model.
        test: rows of the index of the test scans.
        digests: hash of the manifest of each test scan.
    """

    learnt: str
    test: pd.DataFrame
    digests: Mapping[str, str]

    @classmethod
    def of(cls, config: Config) -> Self:
        """Read the index and the manifests of the preprocessed scans."""
        pairs = usable_pairs(config)
        training, validation, test = (pairs[pairs["split"] == split] for split in ("train", "validation", "test"))
        encoder = SideEncoder.fit(training, config.study.side)
        learnt = (
            scan_values(rows["scan"], encoder.encode(rows), scan_digests(config.layout, rows["scan"]))
            for rows in (training, validation)
        )
        return cls(learning_digest(encoder, *learnt), test, scan_digests(config.layout, test["scan"]))


def score_inputs(weights: str, test: Mapping[str, str], sides: Iterable[torch.Tensor]) -> dict[str, str]:
    """Return the inputs that the manifest of an evaluation names.

    Args:
        weights: hash of the weights.
        test: hash of the manifest of each test scan.
        sides: side values [S] of each, as the model sees them.
    """
    return {MODEL: weights, SIDE: digest_of([side.tolist() for side in sides]), **test}


def read_scores(layout: Layout, path: Path, card: ModelCard) -> dict[str, Any] | None:
    """Return the manifest of an evaluation; None if it is of other weights, or a test scan has changed since.

    Scans that have left the study, or whose preprocessed volumes were removed, count as unchanged.

    Args:
        layout: of the study.
        path: the manifest.
        card: of the stored model.
    """
    recorded = read_manifest(path, verify=False)
    if recorded is None:
        return None
    scans = [key for key in recorded["inputs"] if key not in (MODEL, SIDE)]
    present = [key for key in scans if layout.scan_manifest(Scan.parse(key)).is_file()]
    inputs = recorded["inputs"] | {MODEL: card.weights_sha256, **scan_digests(layout, present)}
    if layout.pairs.is_file():
        pairs = read_pairs(layout)
        test = pairs[pairs["scan"].isin(scans)]
        if len(test) == len(scans):
            inputs |= score_inputs(card.weights_sha256, {}, card.side.encode(test))
    return read_manifest(path, inputs=inputs)


def current_scores(config: Config, scans: CurrentScans, card: ModelCard) -> dict[str, pd.DataFrame] | None:
    """Return the tables `scans` and `stress` of a training's scores; None if they are not those of today's study.

    They belong to the stored weights, to the scans and side values that models learn from and are scored on now, and to
    the options of the evaluation, and no later revision of either step has replaced them. Without a stress test its
    table is absent.

    Args:
        config: of the study.
        scans: of the study.
        card: of the stored model.
    """
    layout = config.layout
    path = layout.manifest(f"evaluate/{training_key(card.name, card.seed)}")
    inputs = score_inputs(card.weights_sha256, scans.digests, card.side.encode(scans.test))
    scored, trained = read_manifest(path, inputs=inputs), read_manifest(layout.training_manifest(card.name, card.seed))
    if scored is None or trained is None or trained.get("revision") != REVISIONS["train"]:
        return None
    if card.data_digest != scans.learnt:
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
    scored = read_manifest(path, inputs=scans.digests)
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
