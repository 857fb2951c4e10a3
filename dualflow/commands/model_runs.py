"""What the tracked run of one model holds: name, tags, parameters of that model alone, datasets and description.

Training and evaluation of a model log to the same run, so that runs can be sorted and compared by their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd

from dualflow.baselines import BASELINES
from dualflow.baselines.correction import CORRECTED_MEAN, Correction
from dualflow.config import Config
from dualflow.config.learning import SEEDED
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.study_metrics import measure
from dualflow.flows.spec import FlowSpec
from dualflow.layout import Layout
from dualflow.manifest import read_manifest
from dualflow.modalities import modality
from dualflow.tracking.metric_names import TARGET, metric_name, unit_suffix
from dualflow.tracking.mlflow_calls import RUN_ID
from dualflow.tracking.saved_view import models_view
from dualflow.tracking.source_version import COMMIT, VERSION, source_version
from dualflow.tracking.tracked_run import Run, tracked
from dualflow.training.flow_spec import flow_spec

TRAIN_PARAMETERS = (
    "batch_size", "learning_rate", "warmup", "weight_decay", "clip_norm", "ema", "validate_every", "patience",
)  # fmt: skip
"""Fields of section `train` that every gradient training depends on; a validation chooses the kept weights."""
EVALUATE_TAGS = ("samples", "background_draws", "background_steps", "closed_form_voxels", "seed")
"""Fields of section `evaluate` that the scores of a model depend on, beside the temperature of conversion."""
EVALUATED_AT = "evaluated_at"
"""Tag with the commit of the evaluation, or its version without one; the run's own commit is that of the training."""
TRAINING = "training"
"""Name of the fact in a training's manifest that identifies its run."""
PICTURE = "pictures/test.png"
"""Artifact with the prediction of one test scan."""

TEST = "test/"
"""Group of the tracked scores of the test people."""
SLACKS = {metric.slack: name for name, metric in METRICS.items() if metric.slack}
"""How much an upper bound may be too high, such as `bits_slack`, and the score that it belongs to."""
BEST_STEP = "train/best_step"
"""Tracked name of the step whose weights are kept."""
HEADLINES = ("region_crps", "mae", "voxel_crps", "energy_score", "bits_in_mask", "region_coverage_80")
"""Test scores that the page of a study's models shows, the one that sorts them first."""
CURVES = (
    ("validation/nll", ""),
    ("loss", "nll"),
    ("loss", "l1"),
    ("loss", ""),
    ("validation/mae", ""),
    ("gradient_norm", ""),
)
"""Metrics whose curves that page shows, each with its `loss_term` if it is a loss."""


def model_run(
    config: Config, name: str, seed: int, training: str, *, continues: bool = False
) -> AbstractContextManager[Run]:
    """Open the run of one training, or continue it for its evaluation.

    Args:
        config: the study's configuration.
        name: name of the model.
        seed: seed of the training.
        training: digest of everything that the training depends on; the manifest of the training holds it.
        continues: whether the finished run of this training is continued.
    """
    fold = _fold_tags(config)
    command = {"mlflow.source.name": f"dualflow train --model {name} --seed {seed}"}
    tags = {"model": name, "seed": str(seed), **fold, "training": training, **command}
    queue = config.layout.pending_records
    return tracked(config.tracking, config.study.name, run_label(config, name, seed), tags, queue, continues=continues)


def run_label(config: Config, name: str, seed: int) -> str:
    """Name of the run of a training."""
    return f"{name} seed {seed}" + "".join(f" fold {number}" for number in _fold_tags(config).values())


def _fold_tags(config: Config) -> dict[str, str]:
    return {} if config.split.folds is None else {"fold": str(config.split.fold)}


def training_of(layout: Layout, name: str, seed: int) -> str:
    """Digest that identifies the run of a finished training; empty if its manifest has none."""
    manifest = read_manifest(layout.training_manifest(name, seed), verify=False)
    return "" if manifest is None else str(manifest["facts"].get(TRAINING, ""))


def model_parameters(config: Config, name: str, seed: int, precision: str) -> dict[str, Any]:
    """Parameters that one training depends on: those of its data, its optimiser and, for a flow, its layers.

    The constructor options of a baseline, such as the width of a network, are known once it is built. `precision` is
    that of its convolutions, which `train.precision: auto` leaves open; empty if it is unknown.
    """
    study, train = config.study, config.train
    conditions = {"source": " + ".join(study.sources), "side": ", ".join(study.side) or "none"}
    values: dict[str, Any] = {
        "model": name,
        "kind": model_kind(config, name),
        "seed": seed,
        **(conditions if name in config.flows or BASELINES[name].kind.is_conditional else {}),
        "target": study.target,
        "spacing_mm": config.preprocess.spacing_mm,
        "shape": " x ".join(map(str, config.preprocess.shape)),
    }
    if config.split.folds is not None:
        values |= {"folds": config.split.folds, "fold": config.split.fold}
    optimiser = train.model_dump(include=set(TRAIN_PARAMETERS))
    if precision:
        optimiser["precision"] = precision
    optimiser["augment"] = train.augment.model_dump(
        include=None if train.augment.probability else {"flip", "translate"}
    )
    if name in config.flows:
        choice = config.flows[name]
        spec = flow_spec(choice).to_dict()
        values |= {"preset": choice.preset, "steps": choice.steps or train.steps, **optimiser, "flow": spec}
    elif name in SEEDED:
        section = config.baselines.of(name)
        kind = BASELINES[name].kind
        assert issubclass(kind, Correction)
        rate = section.learning_rate or kind.learning_rate
        values |= optimiser | section.model_dump(exclude_none=True) | {"learning_rate": rate, "mean": CORRECTED_MEAN}
    return values


def evaluation_tags(config: Config) -> dict[str, str]:
    """Tags of an evaluated run: code and options of the evaluation, which may be repeated with others."""
    source = source_version()
    options = {f"evaluate.{name}": str(getattr(config.evaluate, name)) for name in EVALUATE_TAGS}
    options["convert.temperature"] = str(config.convert.temperature)
    return {EVALUATED_AT: source.get(COMMIT, source[VERSION]), **options}


def model_kind(config: Config, name: str) -> str:
    """`flow`, `network` or `closed form`."""
    return "flow" if name in config.flows else "network" if name in SEEDED else "closed form"


def constant_metrics(spec: FlowSpec | None) -> tuple[str, ...]:
    """Prefixes of validation metrics that training cannot change: their curves would be flat lines.

    Args:
        spec: of a flow; None for a baseline.
    """
    if spec is None:
        return ()
    fixed_mean = spec.prediction == "mean" and spec.mean in ("local_linear", "stacked")
    return (
        *(("validation/mae", "validation/pearson_r") if fixed_mean else ()),
        *(() if spec.has_prior_mean else ("validation/explained_",)),
        *(() if spec.discriminator_weight else ("validation/discriminator", "train/discriminator")),
    )


def log_datasets(run: Run, config: Config, pairs: pd.DataFrame, digests: Mapping[str, str], *splits: str) -> None:
    """Log the scans of `splits` as datasets, by the digests of their preprocessed files."""
    contexts = {"train": "training", "validation": "validation", "test": "testing"}
    for split in splits:
        scans = pairs.loc[pairs["split"] == split, "scan"]
        if len(scans):
            frame = pd.DataFrame({"sha256": [digests.get(key, "") for key in scans]})
            run.data(frame, f"{config.study.name}_{split}", contexts[split], data_source(config))


def data_source(config: Config) -> str:
    """Where the scans come from, without folders: the simulation that makes them again, or the kind of dataset."""
    cohort, study = config.cohort, config.study
    if config.embedded:
        return f"dualflow cohort --subjects {cohort.subjects} --seed {cohort.seed} --law {cohort.law}"
    return "a table of scans" if study.samples else "a BIDS dataset"


def score_names(scores: Mapping[str, float], config: Config) -> dict[str, float]:
    """Scores and SLACKS by their tracked names, such as `test/mae_SUVR`."""
    unit = modality(config.study.target).unit
    names = {name: measure(SLACKS.get(name, name)).unit.replace("target", TARGET) for name in scores}
    return {f"{TEST}{name}{unit_suffix(names[name], unit)}": value for name, value in scores.items()}


def study_view(config: Config) -> str:
    """The saved view of a study's models, with HEADLINES, the selected step and CURVES."""
    unit = modality(config.study.target).unit
    curves = [metric_name(key, unit, loss) for key, loss in CURVES]
    return models_view(list(score_names(dict.fromkeys(HEADLINES, 0.0), config)), curves, [BEST_STEP])


def describe_model(config: Config, name: str, seed: int, scores: Mapping[str, float] | None = None) -> str:
    """Description of a model's run as Markdown: what it is, its scores, and where its pictures are."""
    row, fold = modality(config.study.target), ""
    if config.split.folds is not None:
        fold = f", fold {config.split.fold} of {config.split.folds}"
    lines = [f"**{name}**, {model_kind(config, name)}: {' + '.join(config.study.sources)} to {config.study.target}, "
             f"seed {seed}{fold}."]  # fmt: skip
    if scores:
        # The page shows the first lines, and the rest on demand.
        rounded = {key: f"{value:z.{measure(key).digits}f}" for key, value in scores.items()}
        shown = [f"{measure(key).heading(row)} {rounded[key]}" for key in HEADLINES if key in scores]
        lines += ["", f"Means over the test people: {'; '.join(shown)}."] if shown else []
        rows = [f"| {measure(key).heading(row)} | {value} |" for key, value in rounded.items()]
        lines += ["", picture_link(PICTURE, "Source, measured target and prediction of one test scan")]
        lines += ["", "| test score | all test people |", "|---|---:|", *rows]
    return "\n".join(lines) + "\n"


def picture_link(path: str, text: str) -> str:
    """Markdown that shows an artifact of the run on its page."""
    return f"![{text}](get-artifact?path={path}&run_uuid={RUN_ID})"
