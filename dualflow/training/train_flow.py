"""Training of a flow: the mean first, in closed form and perhaps by a network, then the flow of what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from dualflow.config import ModelConfig, TrainConfig
from dualflow.data.dataset import PairDataset, collate
from dualflow.errors import DataError
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.flows.pretrain import SourcePretraining
from dualflow.training.calibrate import calibrate
from dualflow.training.distributed import ALONE, Ranks
from dualflow.training.engine import Watcher, fit
from dualflow.training.fit_mean import fit_mean
from dualflow.training.session import History, to_inputs

# Memory must not grow with the study, and what initialisation sets varies little from this many scans on.
INITIALISATION_SCANS = 64


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
    ranks: Ranks = ALONE,
) -> TrainedFlow:
    """Fit the mean, pre-train the source where the flow asks for it, train the flow, then set its spread right.

    `identity` and `ranks` are those of `fit`; what is fitted in closed form each process fits by itself, to the same.

    Raises:
        DataError: there is nothing to train on.
        DualflowError: training diverged.
    """
    shared: dict[str, Any] = {"label": label, "seed": seed, "folder": folder, "identity": identity, "ranks": ranks}
    model, train, facts = prepared_flow(choice, train, validation, config, side_features=side_features, **shared)
    weights, history = fit(
        model,
        train,
        validation,
        config,
        steps=(choice.steps or config.steps) - facts["pretrain_steps"],
        learning_rate=config.learning_rate,
        watch=watch,
        **shared,
    )
    model.load_state_dict(weights)
    begun = perf_counter()
    facts |= {"spread_scale": calibrate(model, validation, seed), "calibrate_seconds": perf_counter() - begun}
    return TrainedFlow(model.eval(), history, facts)


def prepared_flow(
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
    ranks: Ranks = ALONE,
) -> tuple[DualFlow, PairDataset, dict[str, Any]]:
    """A flow that is ready for its first step, the pairs it is to see, and facts for its card.

    A closed-form mean is cross-fitted: the flow sees each training person's residual from a mean that was fitted
    without that person, as it will for new people; otherwise it would learn residuals that are too small.

    Raises:
        DataError: there is nothing to train on.
    """
    if not len(train):
        raise DataError("no training pairs are left; check the splits and the quarantine table")
    spec = preset(choice.preset, **choice.options)
    begun = perf_counter()
    mean = fit_mean(
        spec.mean,
        train,
        validation,
        config,
        side_features=side_features,
        label=label,
        seed=seed,
        folder=mean_folder(folder),
        identity=identity,
        ranks=ranks,
    )
    facts: dict[str, Any] = {"mean": mean.facts, "mean_seconds": perf_counter() - begun}
    train = train if mean.images is None else train.with_means(mean.images)
    torch.manual_seed(seed)
    steps = choice.steps or config.steps
    channels, *shape = train[0]["source"].shape
    model = DualFlow(
        spec.replace(mean=mean.name), shape=tuple(shape), side_features=side_features, source_channels=channels
    )
    model.mean_model.load_state_dict(mean.model.state_dict())
    # However large its share, a step is left for the flow.
    facts["pretrain_steps"] = pretrained = min(round(spec.source_pretrain * steps), steps - 1)
    if pretrained:
        facts["pretrain_seconds"] = fit_source(
            model, train, validation, config, label, pretrained, seed, folder, identity, ranks
        )
    begun = perf_counter()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    some = collate([train[index] for index in order[:INITIALISATION_SCANS].tolist()])
    model.to(ranks.device).initialize(**to_inputs(some, ranks.device))
    facts["initialize_seconds"] = perf_counter() - begun
    return model, train, facts


def fit_source(
    flow: DualFlow,
    train: PairDataset,
    validation: PairDataset,
    config: TrainConfig,
    label: str,
    steps: int,
    seed: int,
    folder: Path,
    identity: str,
    ranks: Ranks,
) -> float:
    """Pre-train the flow's source, in place; return the seconds its optimiser steps took."""
    trainer = SourcePretraining(flow)
    weights, history = fit(
        trainer,
        train,
        validation,
        config,
        label=f"{label}, source",
        steps=steps,
        learning_rate=config.learning_rate,
        seed=seed,
        folder=source_folder(folder),
        identity=identity,
        ranks=ranks,
    )
    trainer.load_state_dict(weights)
    return history.seconds


def source_folder(folder: Path) -> Path:
    """Where the states of a pre-trained source go, below the folder of its flow."""
    return folder / "source"


def mean_folder(folder: Path) -> Path:
    """Where the states of a network mean go, below the folder of its flow."""
    return folder / "mean"


def parameter_count(model: nn.Module) -> int:
    """Number of parameters that gradients train; closed-form coefficients are buffers and do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
