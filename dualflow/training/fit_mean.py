"""Fitting of the conditional mean, and the choice between means by validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualflow.config import TrainConfig
from dualflow.data.dataset import PairDataset
from dualflow.flows.local_linear import LocalLinear, RegressionScan, fit_local_linear, grouped_folds
from dualflow.flows.mean_models import MEANS, MeanTraining, NetworkMean
from dualflow.layout import Scan as Key
from dualflow.training.distributed import ALONE, Ranks
from dualflow.training.engine import fit
from dualflow.training.validation import validate

FOLDS = 4
CANDIDATES = ("local_linear", "network")


@dataclass(frozen=True)
class FittedMean:
    """A mean that is ready, and what the flow is trained from.

    Attributes:
        name: a row of MEANS.
        model: fitted and frozen.
        images: the mean of each training scan `[1, D, H, W]` from a fit that has not seen that person; None where the
            mean has no such fit, and the flow takes its own.
        facts: for the card.
    """

    name: str
    model: nn.Module
    images: list[Tensor] | None
    facts: dict[str, Any]


def fit_mean(
    name: str,
    train: PairDataset,
    validation: PairDataset,
    config: TrainConfig,
    *,
    side_features: int,
    label: str,
    seed: int,
    folder: Path,
    identity: str = "",
    ranks: Ranks = ALONE,
) -> FittedMean:
    """Fit mean `name`; with `config.choose_mean` every candidate, and keep the one with the least validation MAE."""
    channels, *shape = train[0]["source"].shape
    names = CANDIDATES if config.choose_mean and name in CANDIDATES and len(validation) else (name,)
    fitted = []
    for candidate in names:
        torch.manual_seed(seed)
        model = MEANS[candidate](tuple(shape), side_features, channels)
        images, facts = None, dict[str, Any]()
        if isinstance(model, LocalLinear):
            images, facts = _fit_closed_form(model, train)
        elif isinstance(model, NetworkMean):
            facts = _fit_network(model, train, validation, config, f"{label}, mean", seed, folder, identity, ranks)
        fitted.append(FittedMean(candidate, model.eval().requires_grad_(False), images, facts))
    if len(fitted) == 1:
        return fitted[0]
    errors = {found.name: validate(MeanTraining(found.model), validation, config.batch_size)["mae"] for found in fitted}
    best = min(fitted, key=lambda found: errors[found.name])
    return FittedMean(best.name, best.model, best.images, {**best.facts, "validation_mae": errors})


class _Scans:
    """Training pairs as the closed-form fit reads them, more than once."""

    def __init__(self, pairs: PairDataset, folds: Sequence[int]) -> None:
        self.pairs, self.folds = pairs, folds

    def __iter__(self) -> Iterator[RegressionScan]:
        for index, fold in enumerate(self.folds):
            item = self.pairs[index]
            yield RegressionScan(item["source"], item["target"], item["side"], item["mask"], fold)


def person_folds(pairs: PairDataset) -> list[int]:
    """A fold for each scan, one person's scans in one fold."""
    return grouped_folds([Key.parse(key).subject for key in pairs.scans], FOLDS)


def _fit_closed_form(mean: LocalLinear, train: PairDataset) -> tuple[list[Tensor], dict[str, float]]:
    _, images, chosen = fit_local_linear(_Scans(train, person_folds(train)), mean)
    return images, chosen


def _fit_network(
    mean: NetworkMean,
    train: PairDataset,
    validation: PairDataset,
    config: TrainConfig,
    label: str,
    seed: int,
    folder: Path,
    identity: str,
    ranks: Ranks,
) -> dict[str, float]:
    mean.set_template(torch.stack([train[index]["target"] for index in range(len(train))]).mean(dim=0))
    trainer = MeanTraining(mean)
    weights, history = fit(
        trainer,
        train,
        validation,
        config,
        label=label,
        steps=config.mean_steps,
        learning_rate=config.mean_learning_rate,
        seed=seed,
        folder=folder,
        identity=identity,
        ranks=ranks,
    )
    trainer.load_state_dict(weights)
    return {"network_steps": history.entries[-1]["step"], "network_seconds": history.seconds}
