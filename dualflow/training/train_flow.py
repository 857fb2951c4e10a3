"""Training of a flow: fit the mean, pre-train the source, train the flow on the residuals, and calibrate its spread."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from dualflow.config import ModelConfig
from dualflow.data.dataset import PairDataset, collate
from dualflow.errors import DataError
from dualflow.flows.dequantization import require_bins
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.source_objective import SourceObjective
from dualflow.models.card import TrainingRecord
from dualflow.progress import progress
from dualflow.training.calibrate import calibrate, has_gains, warn_if_uncertain
from dualflow.training.closed_form import subject_folds
from dualflow.training.context import TrainingContext
from dualflow.training.device import chosen_precision
from dualflow.training.fit_base import fit_base
from dualflow.training.fit_mean import fit_mean
from dualflow.training.fit_spread import fit_spread
from dualflow.training.fit_whitening import fit_whitening
from dualflow.training.flow_spec import flow_spec
from dualflow.training.history import History, TrainingResult
from dualflow.training.refit_spread import refit_spread
from dualflow.training.refit_whitening import refit_whitening
from dualflow.training.side_probe import side_probe
from dualflow.training.trainer import Trainer, to_batch

INITIALISATION_SCANS = 64
"""Maximum number of scans for initialisation: more hardly change its result, and would need more memory."""


@dataclass(frozen=True)
class PreparedFlow:
    """A flow that is ready for its first step.

    Attributes:
        objective: objective of the initialised flow.
        train: training pairs, with cross-fitted means and spreads if mean and spread have them.
        steps: optimiser steps that are left for the flow.
        record: training record for the model card.
    """

    objective: FlowObjective
    train: PairDataset
    steps: int
    record: TrainingRecord


def train_flow(
    choice: ModelConfig, train: PairDataset, validation: PairDataset, context: TrainingContext
) -> TrainingResult[DualFlow]:
    """Fit the mean, pre-train the source if the flow asks for it, train the flow, and calibrate its spread.

    Every process repeats the closed-form fits or reads them from the cache, with equal results.

    Raises:
        DataError: there are no training pairs.
        DualflowError: the training diverged.
    """
    prepared = prepare_flow(choice, train, validation, context)
    record, flow = prepared.record, prepared.objective.flow
    # The trainer and its copies of the weights are gone before the fits.
    history = Trainer(
        prepared.objective,
        prepared.train,
        validation,
        context,
        steps=prepared.steps,
        learning_rate=context.config.learning_rate,
        frozen=flow.spec.source_frozen,
    ).fit()
    begin = perf_counter()
    folds = subject_folds(train)
    with progress(f"{context.label}, calibration", 4, visible=context.group.is_main) as done:
        pairs, whitening = refit_whitening(flow, prepared.train)
        done.advance()
        pairs, spread = refit_spread(flow, pairs, folds)
        done.advance()
        precision = context.config.precision
        base = fit_base(flow, pairs, context.regions, folds, context.seed, precision=precision)
        done.advance()
        gains = calibrate(flow, validation, pairs, context.regions, context.config.batch_size)
        done.advance()
    if context.group.is_main and has_gains(flow):
        warn_if_uncertain(gains, validation)
    pairs = pairs.with_scaled_spreads(gains.get("voxel_gain", 1.0))
    record = record.model_copy(
        update={
            "spread": whitening | spread,
            "base": base,
            "side_probe": side_probe(flow, pairs, folds),
            "calibration": gains,
            "calibrate_seconds": perf_counter() - begin,
            "seconds": history.seconds,
            "best_step": history.best_step,
            "skipped_steps": record.skipped_steps + history.skipped,
        }
    )
    return TrainingResult(flow.eval(), history, record)


def prepare_flow(
    choice: ModelConfig, train: PairDataset, validation: PairDataset, context: TrainingContext
) -> PreparedFlow:
    """Build and initialise a flow, with its mean fitted and its source pre-trained.

    A closed-form mean is cross-fitted: the flow sees each training subject's residual from a mean that was fitted
    without that subject. Residuals from a mean fitted on all would be smaller than those of new subjects.

    Raises:
        DataError: there are no training pairs, or their targets cannot be dequantised.
    """
    if not len(train):
        raise DataError("no training pairs are left; check the splits and the quarantine table")
    spec, steps = flow_spec(choice), choice.steps or context.config.steps
    for item in train.items:
        require_bins(item["target"], spec)
    device = context.group.device
    mean = fit_mean(spec.mean, train, context)
    train = train if mean.images is None else train.with_means(mean.images)
    torch.manual_seed(context.seed)
    flow = DualFlow(spec, shape=train.shape, side_features=train.side_features, source_channels=train.source_channels)
    flow.mean_model.load_state_dict(mean.model.state_dict())
    begin = perf_counter()
    train = fit_spread(flow, train, subject_folds(train))
    fit_whitening(flow, train)
    spread_seconds = perf_counter() - begin
    objective = FlowObjective(flow)
    # At least one step is left for the flow.
    pretrain_steps = min(round(spec.source_pretrain * steps), steps - 1)
    pretraining = _pretrain(flow, train, validation, context.part("source"), pretrain_steps)
    begin = perf_counter()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))
    scans = collate([train[index] for index in order[:INITIALISATION_SCANS].tolist()])
    initialize_flow(flow.to(device), to_batch(scans, device))
    few = train.subset(order[:INITIALISATION_SCANS].tolist())
    precision = context.config.precision
    fit_base(flow, few, context.regions, subject_folds(few), context.seed, initial=True, precision=precision)
    record = TrainingRecord(
        precision=chosen_precision(context.config.precision, device),
        mean=mean.facts,
        mean_seconds=mean.seconds,
        pretrain_steps=pretraining.steps,
        pretrain_seconds=pretraining.seconds,
        skipped_steps=pretraining.skipped,
        initialize_seconds=spread_seconds + perf_counter() - begin,
    )
    return PreparedFlow(objective, train, steps - pretrain_steps, record)


def _pretrain(
    flow: DualFlow, train: PairDataset, validation: PairDataset, context: TrainingContext, steps: int
) -> History:
    """Pre-train the flow's source in place; return the history."""
    if not steps:
        return History()
    trainer = Trainer(
        SourceObjective(flow), train, validation, context, steps=steps, learning_rate=context.config.learning_rate
    )
    return trainer.fit()


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters that gradients train; closed-form coefficients are buffers."""
    return sum(parameter.numel() for parameter in model.parameters())
