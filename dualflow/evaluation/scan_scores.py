"""Scores of one scan that its mean and spread do not give: densities, round trips, and errors of single samples."""

from __future__ import annotations

from math import log

import numpy as np
import torch

from dualflow.baselines.residual_density import ResidualDensity
from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.data.unseen_voxels import scored
from dualflow.evaluation.likelihood import another_subject, likelihood
from dualflow.flows.diagnostics import round_trip_error
from dualflow.flows.model import DualFlow
from dualflow.flows.predictions import predict
from dualflow.imaging.intensity import scored_voxels
from dualflow.inference.convert import scan_seed
from dualflow.inference.predict import Prediction
from dualflow.layout import Scan
from dualflow.training.device import device_of, source_and_side


def flow_scores(
    flow: DualFlow | None, test: PairDataset, index: int, prediction: Prediction, config: Config
) -> dict[str, float]:
    """Likelihood and sample scores of one test scan; empty for a model that is not a flow."""
    if flow is None:
        return {}
    return _density_scores(flow, test, index, config) | sample_scores(flow, test[index], prediction)


@torch.no_grad()
def _density_scores(model: DualFlow, test: PairDataset, index: int, config: Config) -> dict[str, float]:
    """Likelihood scores and round-trip errors of one test scan."""
    item, other_index = test[index], another_subject(test.scans, index)
    scores = likelihood(
        model,
        item,
        None if other_index is None else test[other_index],
        voxel_mm=(config.preprocess.spacing_mm,) * 3,
        draws=config.evaluate.background_draws,
        steps=config.evaluate.background_steps,
        seed=scan_seed(config.evaluate.seed, Scan.parse(item["scan"])),
    )
    source, side = source_and_side(item, model)
    target = item["target"][None].to(source.device)
    scores["round_trip_float32"] = round_trip_error(model, target, source, side)
    if index == 0:
        scores["round_trip_float64"] = round_trip_error(model.double(), target.double(), source.double(), side.double())
        model.float()
    return scores


def with_exact_bits(model: torch.nn.Module, test: PairDataset, config: Config) -> ResidualDensity | None:
    """The model if it is a closed form and no brain of the test scans has too many voxels for its exact bits.

    A mean over those with small brains could not be compared with that of other models.
    """
    if not isinstance(model, ResidualDensity):
        return None
    limit = config.evaluate.closed_form_voxels
    return model if all(int(item["mask"].sum()) <= limit for item in test.items) else None


@torch.no_grad()
def closed_form_bits(model: ResidualDensity, item: Item) -> dict[str, float]:
    """Bits of a closed form, which are exact."""
    device = device_of(model)
    target, source, side = (item[key][None].to(device) for key in ("target", "source", "side"))
    shown = scored(item)
    log_prob = model.log_prob(target, shown[None].to(device), source, side)
    return {"bits_in_mask": -log_prob / int(shown.sum()) / log(2), "bits_slack": 0.0}


@torch.no_grad()
def sample_scores(model: DualFlow, item: Item, prediction: Prediction) -> dict[str, float]:
    """MAE of the mode at temperature 0, of one sample and of the sample mean, and the seconds per sample.

    The samples are those of the prediction, because drawing more would dominate the time of an evaluation.
    """
    if prediction.samples is None or prediction.sample_seconds is None:
        return {}
    target = item["target"][0].numpy()
    shown = scored_voxels(target, item["mask"][0].numpy())
    temperature0 = predict(model, *source_and_side(item, model), "temperature0")[0, 0].cpu().numpy()
    images = {
        "temperature0": temperature0,
        "one_sample": prediction.samples[0],
        "sample_mean": prediction.samples.mean(axis=0),
    }
    errors = {f"mae_{kind}": float(np.abs(image - target)[shown].mean()) for kind, image in images.items()}
    return {"sample_seconds": prediction.sample_seconds, **errors}
