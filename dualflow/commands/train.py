"""Train models of a study: each is tracked, saved with its card, and recorded in a manifest."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dualflow.baselines import BASELINES
from dualflow.commands.learning_data import LearningData, fingerprint_of
from dualflow.commands.model_runs import (
    BEST_STEP,
    TRAINING,
    describe_model,
    log_datasets,
    model_parameters,
    model_run,
)
from dualflow.commands.training_curves import log_curves, watcher
from dualflow.commit import commit_text
from dualflow.config import Config, public_values, training_values
from dualflow.config.learning import SEEDED
from dualflow.data.dataset import PairDataset
from dualflow.data.tsv import table_text
from dualflow.errors import ConfigError
from dualflow.flows.interface import ConditionalModel, ConditionalSampler
from dualflow.flows.side_information import chance_accuracy
from dualflow.flows.spec import FlowSpec
from dualflow.imaging.intensity import scored_voxels
from dualflow.imaging.regions import mean_of_known, region_map
from dualflow.inference.predict import Predictor
from dualflow.inference.training_reference import Reference, has_enough_people, scan_figures
from dualflow.manifest import manifest_outputs, read_manifest, write_manifest
from dualflow.modalities import modality
from dualflow.models.card import FLOW, ConstantSpread, ModelCard, StudyRecord, TrainingRecord
from dualflow.models.store import save_model
from dualflow.process import keep_freed_memory, under_torchrun
from dualflow.revisions import REVISIONS
from dualflow.tracking.metric_names import BEST, loss_term, metric_name
from dualflow.tracking.source_version import COMMIT, source_version
from dualflow.tracking.tracked_run import Run
from dualflow.training.build_baseline import build_baseline
from dualflow.training.checkpoint import forget_states
from dualflow.training.context import TrainingContext
from dualflow.training.device import chosen_precision, source_and_side
from dualflow.training.distributed import ProcessGroup, launch, process_group
from dualflow.training.history import History
from dualflow.training.train_baseline import train_baseline
from dualflow.training.train_flow import parameter_count, train_flow

FINISHED = "training-finished.json"
"""Manifest of a finished training in its folder; Snakemake removes that of the step before it runs the step again."""


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: in evaluation mode.
        kind: `flow`, or a row of BASELINES.
        record: of the training.
        history: of the gradient steps.
        parameters: number of trained parameters.
        spec: pieces of a flow; None for a baseline.
        options: constructor options of a baseline.
    """

    model: ConditionalModel
    kind: str
    record: TrainingRecord
    history: History
    parameters: int
    spec: FlowSpec | None = None
    options: dict[str, int] = field(default_factory=dict)


def train(config: Config, names: Sequence[str], seed: int) -> None:
    """Train the models `names` with `seed`, one after the other; they share the scans in memory.

    A finished training of the same data and options is left as it is.

    Raises:
        ConfigError: a name is neither a flow of the configuration nor a baseline.
    """
    for name in names:
        if name not in config.flows and name not in BASELINES:
            raise ConfigError(f"unknown model '{name}'; choose from: {', '.join([*config.flows, *BASELINES])}")
    if config.train.processes > 1 and not under_torchrun():
        launch(config.train.processes, sys.argv[1:])
    keep_freed_memory()  # also for the closed-form fits before the first step
    data = LearningData.load(config)
    with process_group(config.train.device) as group:
        for name in dict.fromkeys(names):
            _train(config, name, seed, data, group)


def _train(config: Config, name: str, seed: int, data: LearningData, group: ProcessGroup) -> None:
    layout, folder = config.layout, config.layout.model(name, seed)
    fingerprint = fingerprint_of(config, name, data)
    training, tracks = fingerprint[:16], name in config.flows or name in SEEDED
    path, record = layout.training_manifest(name, seed), folder / FINISHED
    group.wait()  # the main process may still upload the model before, longer than a collective waits
    manifest = read_manifest(record)
    if group.all_agree(manifest is not None and manifest["facts"].get(TRAINING) == training):
        if group.is_main and manifest is not None:
            print(f"train {name}, seed {seed}: already finished; delete {folder} to train again", file=sys.stderr)
            forget_states(folder)
            outputs = {file: output.path for file, output in manifest_outputs(record, manifest).items()}
            _finish(path, outputs, manifest["inputs"], manifest["config"], training)
        return
    with _tracked(config, name, seed, training, group) as run:
        precision = chosen_precision(config.train.precision, group.device)
        run.parameters(model_parameters(config, name, seed, precision))
        run.describe(describe_model(config, name, seed))
        log_datasets(run, config, data.pairs, data.digests, "train", "validation")
        context = TrainingContext(
            config.train,
            folder,
            seed,
            label=f"train {name}, seed {seed}",
            fingerprint=fingerprint,
            group=group,
            watch=watcher(config, name, run, data.validation),
            log=lambda step, values: log_curves(config, name, run, step, values),
            regions=torch.from_numpy(region_map(config.preprocess).labels),
            closed_form=data.closed_form_cache(layout),
        )
        # The load of the machine says nothing about a fit of seconds.
        with run.system() if tracks else nullcontext():
            trained = fit_model(config, name, data, context)
        if not group.is_main:
            group.wait()
            return
        files = _save(config, name, data, context, trained)
        group.wait()  # before the uploads: the other processes wait for a limited time
        for file in files:
            run.file(file, "model")
        run.parameters(trained.options)
        run.metrics(_totals(trained) | _selected(config, trained) | _side_probe_metrics(trained, data.training))
        run.finish()
        values = {
            "name": name,
            "seed": seed,
            "study": public_values(config)["study"],
            **training_values(config, name),
        }
        for target in (record, path):
            _finish(target, {file.name: file for file in files}, data.digests, values, training)
    # After the manifest: a training killed before it resumes from its states.
    forget_states(folder)


def _finish(path: Path, outputs: Mapping[str, Path], inputs: Mapping[str, str], values: Any, training: str) -> None:
    write_manifest(path, step="train", outputs=outputs, inputs=inputs, config=values, facts={TRAINING: training})


def _totals(trained: Trained) -> dict[str, float]:
    """Cost of a training; without optimiser steps those have none."""
    record = trained.record
    steps = {"train/seconds": record.seconds, "train/skipped_steps": float(record.skipped_steps)}
    return {"train/parameters": float(trained.parameters), "train/mean_seconds": record.mean_seconds} | (
        steps if trained.history.entries else {}
    )


def _selected(config: Config, trained: Trained) -> dict[str, float]:
    """Step and selection score of the weights that are kept; empty without optimiser steps."""
    entries = trained.history.entries
    if not entries:
        return {}
    score = metric_name(f"validation/{BEST}", modality(config.study.target).unit, loss_term(entries[-1]))
    return {BEST_STEP: float(trained.record.best_step), score: trained.history.best}


def _side_probe_metrics(trained: Trained, training: PairDataset) -> dict[str, float]:
    """What a flow's latents tell about side values: shares of a probe, and the chance level of the discriminators."""
    numbers = {f"train/side_probe_{level}_fraction": share for level, share in trained.record.side_probe.items()}
    if trained.spec is not None and trained.spec.discriminator_weight and training[0]["side"].numel():
        chance = chance_accuracy(torch.stack([item["side"] for item in training.items]))
        numbers["train/discriminator_chance_fraction"] = float(chance)
    return numbers


def _save(config: Config, name: str, data: LearningData, context: TrainingContext, trained: Trained) -> list[Path]:
    """Write weights, reference, card and history; return the files."""
    card = ModelCard(
        name=name,
        seed=context.seed,
        kind=trained.kind,
        spec=trained.spec,
        options=trained.options,
        shape=data.training.shape,
        study=StudyRecord.of(config.study),
        side=data.encoder,
        preprocess=config.preprocess.without_folders(),
        preprocess_revision=REVISIONS["preprocess"],
        constant_spread=_constant_spread(config, trained.model, data.validation),
        parameters=trained.parameters,
        data_digest=data.digest,
        training=trained.record,
        commit=source_version().get(COMMIT, ""),
        torch=torch.__version__,
        device=context.group.device.type,
    )
    files = list[Path]()
    if trained.kind == FLOW and has_enough_people(data.training):
        predictor = Predictor(trained.model, card)
        reference = Reference.fit(predictor, data.training, scan_figures(config.layout, data.training), context.seed)
        digest, files = reference.save(context.folder)
        card = card.model_copy(update={"reference_sha256": digest})
    _, saved = save_model(context.folder, trained.model, card)
    files += saved
    if trained.history.entries:
        history = context.folder / "history.tsv"
        commit_text(history, table_text(pd.DataFrame(trained.history.entries)))
        files.append(history)
    return files


def _tracked(config: Config, name: str, seed: int, training: str, group: ProcessGroup) -> AbstractContextManager[Run]:
    """Open the tracked run in the main process; the others get a run that records nothing."""
    return model_run(config, name, seed, training) if group.is_main else nullcontext(Run())


def fit_model(config: Config, name: str, data: LearningData, context: TrainingContext) -> Trained:
    """Train one model: a flow of the configuration, or a row of BASELINES."""
    fit = _train_flow if name in config.flows else _train_baseline
    return fit(config, name, data, context)


def _train_flow(config: Config, name: str, data: LearningData, context: TrainingContext) -> Trained:
    result = train_flow(config.flows[name], *data.filled, context)
    return Trained(result.model, FLOW, result.record, result.history, parameter_count(result.model), result.model.spec)


def _train_baseline(config: Config, name: str, data: LearningData, context: TrainingContext) -> Trained:
    training = data.training
    torch.manual_seed(context.seed)
    model, options = build_baseline(config, name, training.shape, training.side_features, training.source_channels)
    result = train_baseline(model, *data.filled, context, config.baselines.of(name))
    return Trained(result.model, name, result.record, result.history, parameter_count(model), None, options)


@torch.no_grad()
def _constant_spread(config: Config, model: ConditionalModel, validation: PairDataset) -> ConstantSpread | None:
    """Root mean squared error on validation people, per voxel and per region mean: a spread for point estimates.

    It is None for a model with samples, which has a spread of its own, and without validation pairs, because residuals
    on the training pairs would be too small.
    """
    if isinstance(model, ConditionalSampler) or not len(validation):
        return None
    regions = region_map(config.preprocess)
    errors = []
    for index in range(len(validation)):
        item = validation[index]
        target, mask = item["target"][0].numpy(), item["mask"][0].numpy()
        shown = scored_voxels(target, mask)
        error = model.point_estimate(*source_and_side(item, model))[0, 0].float().cpu().numpy() - target
        region_error = mean_of_known(np.square(regions.measured(shown, mask).means(error, shown)))
        errors.append({"voxel": np.square(error[shown]).mean(), "region": region_error})
    # People count alike, however many visits they have.
    squares = pd.DataFrame(errors).groupby(np.array(validation.subjects)).mean().mean()
    return ConstantSpread(
        voxel=float(np.sqrt(squares["voxel"])),
        # Without any region in view there is no spread of region means; 0 stands for none.
        region=float(np.nan_to_num(np.sqrt(squares["region"]))),
        regions=len(regions.names),
    )
