"""Fits of scales of errors by gamma regression."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.usual_source import deviations_from_others
from dualflow.flows.voxel_features import foreground
from dualflow.flows.voxel_scale import VoxelScale, voxel_features

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)
"""Candidate strengths of the ridge, for standardised features; the largest leaves no effect."""
TINY = 1e-12
"""Mean squared error that counts as none."""
VOXELS = 300_000
"""Maximum number of voxels, of all scans together, whose errors determine a scale of voxels."""


def fit_scale(scale: LogLinearScale, features: Tensor, energy: Tensor, folds: Sequence[int]) -> Tensor:
    """Fit a scale in place to mean squared errors, 1 on average, and return cross-fitted scales `[N]`.

    The errors are `q ~ s^2 chi^2 / n`, so the fit is a gamma regression with log link and a ridge penalty (McCullagh
    and Nelder 1989, chapter 8). Cross-fitting chooses the ridge; with one fold, or without errors, the scale stays 1.

    Args:
        scale: fitted in place.
        features: `[N, P]` of people or voxels, on the CPU, NaN where unknown.
        energy: mean squared error of each, `[N]`.
        folds: cross-fitting fold of each.
    """
    from sklearn.linear_model import GammaRegressor
    from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict

    if len(set(folds)) < 2 or energy.mean() < TINY:
        return torch.ones_like(energy)
    centre = torch.nan_to_num(features.nanmean(dim=0))
    known = torch.nan_to_num(features - centre).double().numpy()
    spread = known.std(axis=0)
    spread[spread == 0] = 1.0
    target = (energy / energy.mean()).clamp_min(1e-6).double().numpy()  # a gamma needs q > 0
    split = PredefinedSplit(folds)
    search = GridSearchCV(
        GammaRegressor(solver="newton-cholesky", max_iter=1000),
        {"alpha": RIDGES},
        cv=split,
        scoring="neg_mean_gamma_deviance",
    )
    fitted = search.fit(known / spread, target).best_estimator_
    scale.centre.copy_(centre)
    scale.weight.copy_(torch.from_numpy(fitted.coef_ / spread))
    scale.bias.fill_(float(fitted.intercept_))
    exponent = torch.from_numpy(known @ (fitted.coef_ / spread) + fitted.intercept_)
    scale.limits.copy_(torch.stack([exponent.min(), exponent.max()]))
    squares = cross_val_predict(fitted, known / spread, target, cv=split)
    return torch.from_numpy(squares).sqrt().to(energy)


@torch.no_grad()
def fit_voxel_scale(
    scale: VoxelScale,
    sources: Sequence[Tensor],
    squares: Iterable[tuple[Tensor, Tensor]],
    folds: Sequence[int],
    groups: Sequence[Hashable],
) -> tuple[list[Tensor], Tensor]:
    """Fit a scale of voxels in place to squared errors of training scans.

    Args:
        scale: fitted in place.
        sources: of each scan, `[C, D, H, W]`.
        squares: of each scan, squared errors relative to those that all people have, and where to take them, both
            `[D, H, W]`.
        folds: cross-fitting fold of each scan.
        groups: group of each scan, whose scans it is not compared with.

    Returns:
        The scale of each scan relative to the scans of other groups, `[1, D, H, W]`, and the mean squared error of each
        that the scale leaves, `[N]`.
    """
    scans = [(source, foreground(source[None])[0, 0]) for source in sources]
    scale.usual.fit(scans)
    deviations = list(deviations_from_others(scale.usual, scans, groups))
    features, errors = [], []
    generator = torch.Generator().manual_seed(0)
    for source, deviation, (square, inside) in zip(sources, deviations, squares, strict=True):
        values = square[inside]
        chosen = torch.randperm(len(values), generator=generator)[: VOXELS // len(sources)]
        features.append(voxel_features(source[None], deviation[None])[0][inside][chosen])
        errors.append(values[chosen])
    voxel_folds = np.repeat(folds, [len(error) for error in errors]).tolist()
    fit_scale(scale.scale, torch.cat(features), torch.cat(errors), voxel_folds)
    left = [(error / scale.scale(values).square()).mean() for error, values in zip(errors, features, strict=True)]
    scales = [
        scale.of(inside[None, None], source[None], deviation[None])[0]
        for (source, inside), deviation in zip(scans, deviations, strict=True)
    ]
    return scales, torch.stack(left)
