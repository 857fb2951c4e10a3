"""What a training shows while it runs: tracked curves, and a picture of a validation scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dualflow.commands.model_runs import constant_metrics
from dualflow.config import Config
from dualflow.data.dataset import PairDataset
from dualflow.flows.objective import Objective
from dualflow.modalities import modality
from dualflow.tracking.metric_names import loss_term, metric_name
from dualflow.tracking.tracked_run import Run
from dualflow.training.context import Watcher
from dualflow.training.device import source_and_side
from dualflow.training.flow_spec import flow_spec

PICTURE_SEED = 0
"""Seed of the sample in tracked pictures."""


def watcher(config: Config, name: str, run: Run, validation: PairDataset) -> Watcher:
    """Track the scores and a picture of the first validation scan at every validation."""
    row = modality(config.study.target)

    def watch(step: int, metrics: Mapping[str, float], objective: Objective) -> None:
        kept = {key: value for key, value in metrics.items() if key.startswith(("validation/", "samples_per_second"))}
        run.metrics(_named(config, name, kept), step)
        if len(validation):
            run.image(_picture(objective, validation, row.window), "validation/axial", step)

    return watch


def log_curves(config: Config, name: str, run: Run, step: int, values: Mapping[str, float]) -> None:
    """Track the terms of one training step."""
    run.metrics(_named(config, name, values), step)


def _named(config: Config, name: str, values: Mapping[str, float]) -> dict[str, float]:
    """Metrics by their tracked names, without those that training cannot change."""
    unit, loss = modality(config.study.target).unit, loss_term(values)
    choice = config.flows.get(name)
    constant = constant_metrics(None if choice is None else flow_spec(choice))
    return {
        metric_name(key, unit, loss): value
        for key, value in values.items()
        if not key.startswith(constant or "/") and not f"train/{key}".startswith(constant or "/")
    }


@torch.no_grad()
def _picture(objective: Objective, validation: PairDataset, window: tuple[float, float]) -> Any:
    """Middle axial slice of source, real target, estimate and, for a flow, one sample; values in [0, 1]."""
    item = validation[0]
    (source, side), mask = source_and_side(item, objective), item["mask"][0]
    images: list[Tensor] = [item["target"][0], objective.point_estimate(source, side)[0, 0].float().cpu()]
    sample = objective.sample(source, side, torch.Generator().manual_seed(PICTURE_SEED))
    images += [] if sample is None else [sample[0, 0].float().cpu()]
    low, high = window
    normalised = [item["source"][0], *((image * mask - low) / (high - low) for image in images)]
    row = torch.cat([image[:, :, image.shape[2] // 2].T.flip(0) for image in normalised], dim=1)
    return row.clamp(0, 1).numpy()
