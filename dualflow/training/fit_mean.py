"""Fit of a flow's conditional mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dualflow.data.dataset import PairDataset
from dualflow.flows.closed_form_fits import is_closed_form
from dualflow.flows.mean_models import MEANS
from dualflow.flows.regression_scans import RegressionScans
from dualflow.training.closed_form import subject_folds
from dualflow.training.context import TrainingContext


@dataclass(frozen=True)
class FittedMean:
    """A fitted mean with its cross-fitted images.

    Attributes:
        model: fitted and frozen.
        images: cross-fitted mean of each training scan `[1, D, H, W]`, from a fit without that subject; None without a
            mean.
        facts: results of the fit, for the model card.
        seconds: time of the fit.
    """

    model: nn.Module
    images: list[Tensor] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def fit_mean(name: str, train: PairDataset, context: TrainingContext) -> FittedMean:
    """Fit the row `name` of MEANS to the training scans."""
    model = MEANS[name](train.shape, train.side_features, train.source_channels)
    if not is_closed_form(model):
        return FittedMean(model.eval())
    _, images, facts = context.closed_form(RegressionScans(train, subject_folds(train)), model)
    return FittedMean(model.eval().requires_grad_(False), images, facts, context.closed_form.seconds)
