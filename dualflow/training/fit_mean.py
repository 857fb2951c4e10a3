"""Fitting of the conditional mean, and the choice between means by validation."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from dualflow.data.dataset import PairDataset
from dualflow.flows.closed_form_fits import is_closed_form
from dualflow.flows.mean_models import MEANS, NetworkMean
from dualflow.flows.objective import ImageObjective
from dualflow.flows.regression_scans import RegressionScans
from dualflow.training.closed_form import subject_folds
from dualflow.training.context import TrainingContext
from dualflow.training.trainer import Trainer
from dualflow.training.validation import validate


@dataclass(frozen=True)
class FittedMean:
    """A fitted mean with its cross-fitted images.

    Attributes:
        name: a row of MEANS.
        model: fitted and frozen.
        images: cross-fitted mean of each training scan `[1, D, H, W]`, from a fit without that subject; None if the
            mean is not cross-fitted.
        facts: results of the fit, for the model card.
        seconds: time of the fit.
    """

    name: str
    model: nn.Module
    images: list[Tensor] | None
    facts: dict[str, Any]
    seconds: float


def fit_mean(
    name: str, train: PairDataset, validation: PairDataset, context: TrainingContext, *, side_features: int
) -> FittedMean:
    """Fit mean `name`; with `choose_mean` also fit a network, and keep the one with the least validation MAE."""
    config = context.config
    candidates = [name]
    if config.choose_mean and name != "none" and len(validation):
        candidates = ["local_linear" if name == "network" else name, "network"]
    fitted = [_fit(candidate, train, validation, context, side_features) for candidate in candidates]
    if len(fitted) == 1:
        return fitted[0]
    errors = {mean.name: _validation_mae(mean, validation, config.batch_size) for mean in fitted}
    best = min(fitted, key=lambda mean: errors[mean.name])
    facts = {**best.facts, "validation_mae": errors}
    return FittedMean(best.name, best.model, best.images, facts, sum(mean.seconds for mean in fitted))


def _fit(
    name: str, train: PairDataset, validation: PairDataset, context: TrainingContext, side_features: int
) -> FittedMean:
    channels, *shape = train[0]["source"].shape
    torch.manual_seed(context.seed)
    model = MEANS[name](tuple(shape), side_features, channels)
    images, facts, seconds = None, dict[str, Any](), 0.0
    if is_closed_form(model):
        _, images, facts = context.closed_form(RegressionScans(train, subject_folds(train)), model)
        seconds = context.closed_form.seconds
    elif isinstance(model, NetworkMean):
        begin = perf_counter()
        facts = _fit_network(model, train, validation, context.part("mean"))
        seconds = perf_counter() - begin
    return FittedMean(name, model.eval().requires_grad_(False), images, facts, seconds)


def _fit_network(
    mean: NetworkMean, train: PairDataset, validation: PairDataset, context: TrainingContext
) -> dict[str, float]:
    mean.set_template(torch.stack([train[index]["target"] for index in range(len(train))]).mean(dim=0))
    config = context.config
    trainer = Trainer(
        ImageObjective(mean),
        train,
        validation,
        context,
        steps=config.mean_steps,
        learning_rate=config.mean_learning_rate,
    )
    history = trainer.fit()
    return {"network_steps": history.entries[-1]["step"], "network_seconds": history.seconds}


def _validation_mae(mean: FittedMean, validation: PairDataset, batch_size: int) -> float:
    return validate(ImageObjective(mean.model), validation, batch_size)["mae"]
