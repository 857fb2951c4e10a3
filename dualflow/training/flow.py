"""Training of a flow: the mean first, in closed form and perhaps by a network, then the flow of what it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from dualflow.config import ModelConfig, TrainConfig
from dualflow.data.dataset import PairDataset, collate
from dualflow.errors import DataError
from dualflow.flows.local_linear import LocalLinear, Scan, fit_local_linear, grouped_folds
from dualflow.flows.mean import MeanTraining, NetworkMean
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.layout import Scan as Key
from dualflow.training.engine import History, Watcher, fit

FOLDS = 4


@dataclass(frozen=True)
class TrainedFlow:
    """A trained flow and how it came about.

    Attributes:
        model: with the averaged weights of the best validation.
        history: of the flow's own training.
        facts: what goes into the card.
    """

    model: DualFlow
    history: History
    facts: dict[str, Any]


def train_flow(
    choice: ModelConfig,
    train: PairDataset,
    validation: PairDataset,
    config: TrainConfig,
    *,
    side_features: int,
    label: str,
    seed: int,
    folder: Path,
    identity: str = "",
    watch: Watcher | None = None,
) -> TrainedFlow:
    """Fit the mean, then the flow.

    A closed-form mean is cross-fitted: the flow sees each training person's residual from a mean that was fitted
    without that person, as it will for new people; otherwise it would learn residuals that are too small.
    `identity` is that of `fit`.

    Raises:
        DataError: there is nothing to train on.
        DualflowError: training diverged.
    """
    if not len(train):
        raise DataError("no training pairs are left; check the splits and the quarantine table")
    torch.manual_seed(seed)
    spec = preset(choice.preset, **choice.options)
    shape = tuple(train[0]["source"].shape[1:])
    model = DualFlow(spec, shape=shape, side_features=side_features)
    facts: dict[str, Any] = {}
    begun = perf_counter()
    if isinstance(model.mean_model, LocalLinear):
        means, facts["mean"] = _fit_closed_form(model.mean_model, train)
        train = train.with_means(means)
    elif isinstance(model.mean_model, NetworkMean):
        train, facts["mean"] = _fit_network(
            model.mean_model, train, validation, config, label, seed, mean_folder(folder), identity
        )
    facts["mean_seconds"] = perf_counter() - begun
    begun = perf_counter()
    everyone = collate([train[index] for index in range(len(train))])
    model.initialize(everyone["target"], everyone["source"], everyone["side"], everyone.get("mean"))
    facts["initialize_seconds"] = perf_counter() - begun
    weights, history = fit(
        model,
        train,
        validation,
        config,
        label=label,
        steps=choice.steps or config.steps,
        learning_rate=config.learning_rate,
        seed=seed,
        folder=folder,
        identity=identity,
        watch=watch,
    )
    model.load_state_dict(weights)
    return TrainedFlow(model.eval(), history, facts)


class _Scans:
    """Training pairs as the closed-form fit reads them, more than once."""

    def __init__(self, pairs: PairDataset, folds: Sequence[int]) -> None:
        self.pairs, self.folds = pairs, folds

    def __iter__(self) -> Iterator[Scan]:
        for index, fold in enumerate(self.folds):
            item = self.pairs[index]
            yield Scan(item["source"], item["target"], item["side"], item["mask"], fold)


def _fit_closed_form(mean: LocalLinear, train: PairDataset) -> tuple[list[Tensor], dict[str, float]]:
    folds = grouped_folds([Key.parse(key).subject for key in train.scans], FOLDS)
    _, means, chosen = fit_local_linear(_Scans(train, folds), mean)
    return means, chosen


def _fit_network(
    mean: NetworkMean,
    train: PairDataset,
    validation: PairDataset,
    config: TrainConfig,
    label: str,
    seed: int,
    folder: Path,
    identity: str,
) -> tuple[PairDataset, dict[str, float]]:
    """Train the network mean; where it corrects a closed-form mean, from that one's cross-fitted images."""
    facts: dict[str, float] = {}
    if mean.base is None:
        mean.set_template(torch.stack([train[index]["target"] for index in range(len(train))]).mean(dim=0))
    else:
        means, facts = _fit_closed_form(mean.base, train)
        train = train.with_means(means)
    trainer = MeanTraining(mean)
    mean.requires_grad_(True)
    if mean.base is not None:
        mean.base.requires_grad_(False)
    weights, history = fit(
        trainer,
        train,
        validation,
        config,
        label=f"{label}, mean",
        steps=max(1, config.mean_steps),
        learning_rate=config.mean_learning_rate,
        seed=seed,
        folder=folder,
        identity=identity,
    )
    trainer.load_state_dict(weights)
    trainer.eval().requires_grad_(False)
    facts |= {"network_steps": float(config.mean_steps), "network_seconds": history.seconds}
    if mean.base is None:
        return train, facts
    with torch.no_grad():
        images = [
            mean(item["source"][None], item["side"][None], item["mean"][None])[0]
            for item in (train[index] for index in range(len(train)))
        ]
    return train.with_means(images), facts


def mean_folder(folder: Path) -> Path:
    """Where the states of a network mean go, below the folder of its flow."""
    return folder / "mean"


def parameter_count(model: nn.Module) -> int:
    """Number of parameters that gradients train; closed-form coefficients are buffers and do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
