"""Region means of a study's scans: measured, predicted without learning from the scan, and the model's samples."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dualflow.arrays import Bools, Doubles
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.closed_form_fits import Solver, is_closed_form
from dualflow.flows.interface import ConditionalModel, ConditionalSampler
from dualflow.flows.mean_models import MEANS
from dualflow.flows.model import DualFlow
from dualflow.flows.regression_scans import RegressionScans
from dualflow.imaging.regions import RegionMap
from dualflow.imputation.proper_draws import RegionScans
from dualflow.training.closed_form import subject_folds
from dualflow.training.device import device_of, source_and_side


@dataclass(frozen=True)
class RegionValues:
    """Region means of one scan; a region without a voxel in the brain mask is NaN, as is one the target does not show.

    Attributes:
        measured: of the measured target `[R]`; NaN without one.
        prediction: of the point estimate `[R]`.
        noise: deviations of the model's samples from their mean, `[M, R]`.
    """

    measured: Doubles
    prediction: Doubles
    noise: Doubles


@torch.no_grad()
def region_values(
    model: ConditionalSampler, item: Item, regions: RegionMap, draws: int, seed: int, image: Tensor | None = None
) -> RegionValues:
    """Return the region means of one scan. Samples are drawn a few at a time.

    Args:
        model: in evaluation mode.
        item: a scan of a PairDataset.
        regions: the atlas on the model grid.
        draws: number of samples M; with 0 the scan is only measured, and the model is not used.
        seed: of the samples.
        image: cross-fitted prediction `[1, D, H, W]` of a scan that the model learnt from.
    """
    mask = item["mask"][0].numpy()
    target = item["target"][0].numpy() if "target" in item else np.full(mask.shape, np.nan, np.float32)
    measured = regions.measured_means(target, mask)
    if not draws:
        return RegionValues(measured, np.full_like(measured, np.nan), np.empty((0, len(measured))))
    batch = source_and_side(item, model)
    inside = item["mask"].to(device_of(model))
    point = model.point_estimate(*batch)[0] if image is None else image
    samples = [
        regions.means(drawn[:, 0, 0].where(inside[0], 0.0).float().cpu().numpy(), mask)
        for drawn in model.stream(*batch, draws, 1.0, torch.Generator().manual_seed(seed))
    ]
    noise = np.concatenate(samples)
    prediction = regions.means(point[0].float().cpu().numpy(), mask)
    return RegionValues(measured, prediction, noise - noise.mean(axis=0))


def chosen_scans(values: Sequence[RegionValues], terms: pd.DataFrame, chosen: Bools) -> RegionScans:
    """Return the `chosen` scans `[N]` of `values`, with their rows of `terms`."""
    scans = [one for one, is_in in zip(values, chosen, strict=True) if is_in]
    prediction, noise = np.stack([one.prediction for one in scans]), np.stack([one.noise for one in scans], axis=1)
    return RegionScans(terms[chosen].reset_index(drop=True), prediction, noise)


def cross_fitted_images(model: ConditionalModel, training: PairDataset, solve: Solver) -> Sequence[Tensor] | None:
    """Return the prediction `[1, D, H, W]` of each training scan by a fit without its subject.

    Args:
        model: a trained model.
        training: its training scans.
        solve: the solver of the training, whose cache still holds the fit.

    Returns:
        None if the model's point estimate is no closed form.
    """
    folds = subject_folds(training)
    if isinstance(model, DualFlow):
        depth, height, width = model.shape
        mean = MEANS[model.spec.mean]((depth, height, width), model.side_features, model.source_channels)
        if model.spec.prediction != "mean" or not is_closed_form(mean):
            return None
        return solve(RegressionScans(training, folds), mean)[1]
    from dualflow.baselines.residual_density import ClosedFormDensity

    # A copy, because a fit changes the mean, and this one is part of verified weights.
    return deepcopy(model.mean).cpu().fit(training, folds, solve) if isinstance(model, ClosedFormDensity) else None
