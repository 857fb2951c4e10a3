"""Export a trained model as a bundle: weights, card, README and hashes in one folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from dualflow.data.index import read_pairs
from dualflow.data.side_encoder import Categorical
from dualflow.errors import ConfigError, DataError
from dualflow.evaluation.held_out import Evaluation, study_of
from dualflow.evaluation.metrics import METRICS
from dualflow.inference.training_reference import load_reference
from dualflow.layout import Layout, Scan
from dualflow.manifest import manifest_outputs, read_manifest
from dualflow.modalities import modality
from dualflow.models.bundle import copy_bundle, is_bundle, write_bundle
from dualflow.models.card import ModelCard
from dualflow.models.model_files import CARD, WEIGHTS
from dualflow.models.model_readme import HeldOutScore, SplitCount, StudyFacts, model_readme
from dualflow.models.store import load_model

SCORES = ("mae", "region_mae", "voxel_crps", "region_crps", "region_coverage_80", "voxel_coverage_80", "bits_in_mask")
"""Metrics in the README of a bundle."""
SPLITS = {"train": "training", "validation": "validation"}


def export(model: Path, folder: Path, licence: str = "") -> None:
    """Write the bundle of a trained model, or copy a bundle.

    Args:
        model: folder of a trained model, or a bundle.
        folder: folder to write; an earlier bundle is replaced.
        licence: licence of the weights.

    Raises:
        CheckpointError: there is no model, or it does not verify.
        ConfigError: `folder` is the model's own, or `licence` is given for a bundle, whose README is final.
        CommitError: `folder` holds something else, or cannot be written.
        DataError: the card would contain labels of subjects.
    """
    if folder.resolve() in (model.resolve(), *model.resolve().parents):
        raise ConfigError(f"BUNDLE {folder} contains MODEL {model}; name another folder")
    card = load_model(model).card
    load_reference(model, card)  # a bundle without it would load, and convert nothing
    if is_bundle(model):
        if licence:
            raise ConfigError(f"--licence {licence!r}: {model} is a bundle already; export the original model folder")
        copy_bundle(model, folder)
        return
    layout = study_of(model, card)
    pairs = None if layout is None or not layout.pairs.is_file() else read_pairs(layout)
    if pairs is not None:
        _refuse_labels(card, pairs)
    elif any(isinstance(column, Categorical) for column in card.side.columns):
        print(
            f"warning: {model} is without the index of its study, so whether levels of its side columns are labels of "
            f"subjects was not checked; see `side` in {model / CARD}",
            file=sys.stderr,
        )
    facts = StudyFacts({}) if layout is None else _study_facts(layout, card, pairs)
    write_bundle(
        model,
        folder,
        card,
        lambda files: model_readme(card, facts, {name: file.sha256 for name, file in files.items()}, licence),
    )


def _study_facts(layout: Layout, card: ModelCard, pairs: pd.DataFrame | None) -> StudyFacts:
    """Numbers of scans, and measured scores, of the study of a model."""
    splits, evaluation = _learning_splits(layout, card, pairs), Evaluation.read(layout, card)
    if evaluation is not None:
        splits["held out"] = _count(evaluation.scans["scan"])
    return StudyFacts(
        splits,
        () if evaluation is None else tuple(_scores(evaluation.summary, card)),
    )


def _learning_splits(layout: Layout, card: ModelCard, pairs: pd.DataFrame | None) -> dict[str, SplitCount]:
    """Sizes of the training and validation splits; empty if the study does not say what these weights learned from."""
    path = layout.training_manifest(card.name, card.seed)
    manifest = read_manifest(path, verify=False)
    if manifest is None or pairs is None:
        return {}
    weights = manifest_outputs(path, manifest).get(WEIGHTS)
    if weights is None or weights.sha256 != card.weights_sha256:
        return {}
    used = pairs[pairs["scan"].isin(manifest["inputs"].keys()) & pairs["split"].isin(SPLITS)]
    if len(used) < len(manifest["inputs"]):  # the index has changed since, and tells no longer who was in which split
        return {}
    return {name: _count(used.loc[used["split"] == split, "scan"]) for split, name in SPLITS.items()}


def _refuse_labels(card: ModelCard, pairs: pd.DataFrame) -> None:
    """Refuse a card of which at least half of a column's levels are subjects; the others may be `none` or `n/a`."""
    labels = {*pairs["subject"].astype(str), *(f"sub-{label}" for label in pairs["subject"])}
    for column in card.side.columns:
        if isinstance(column, Categorical) and 2 * len(labels & {*column.levels}) >= len(column.levels) > 0:
            raise DataError(
                f"side column '{column.name}' has the labels of subjects as its levels, which a bundle must not hold; "
                "train without this column"
            )


def _count(scans: pd.Series) -> SplitCount:
    return SplitCount(len(scans), len({Scan.parse(str(key)).subject for key in scans}))


def _scores(summary: pd.DataFrame, card: ModelCard) -> list[HeldOutScore]:
    target = modality(card.study.target)
    rows = {str(row["metric"]): row for row in summary.to_dict("records")}
    return [
        HeldOutScore(
            METRICS[name].heading(target),
            mean=float(row["mean"]),
            low=float(row["low"]),
            high=float(row["high"]),
            people=int(row["subjects"]),
            digits=METRICS[name].digits,
        )
        for name in SCORES
        if (row := rows.get(name)) is not None
    ]
