"""Linear probe of what a flow's latents tell about side information."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dualflow.data.dataset import PairDataset
from dualflow.flows.model import DualFlow
from dualflow.training.fit_base import BATCH, conditioned_batches

MIN_SCANS = 24
"""With fewer scans of known side value a probe finds nothing but noise."""
RIDGES = tuple(np.logspace(0, 5, 6))
ERROR = "neg_mean_squared_error"
"""By which the folds choose among RIDGES."""


@torch.no_grad()
def side_probe(flow: DualFlow, pairs: PairDataset, folds: Sequence[int]) -> dict[str, float]:
    """Return the share of the variance of side values that the latents of each level but the coarsest explain.

    The features of a level are the mean and the log mean square of each channel inside the brain, and a ridge
    regression predicts each side value from them. Predictions are cross-fitted, so latents that tell nothing have a
    share of about 0, or a little less.

    Args:
        flow: a trained flow.
        pairs: its training pairs, with cross-fitted means and spreads if mean and spread have them.
        folds: cross-fitting fold of each pair.

    Returns:
        `level_1` .., finest first, each a mean over the side values; empty without side values or with few scans.
    """
    flow.eval()
    sides = torch.stack([item["side"] for item in pairs.items]).double().numpy()
    features: list[list[Tensor]] = [[] for _ in range(flow.spec.levels - 1)]
    masks = torch.split(torch.stack([item["mask"] for item in pairs.items]), BATCH)
    for (target, condition), inside in zip(conditioned_batches(flow, pairs, BATCH), masks, strict=True):
        for rows, latent in zip(features, flow.encoding(target, condition).latents, strict=False):
            rows.append(_moments(latent.float(), inside.to(latent).float()).cpu())
    shares = {
        f"level_{level}": explained_share(torch.cat(rows).double().numpy(), sides, np.asarray(folds))
        for level, rows in enumerate(features, 1)
    }
    return {name: share for name, share in shares.items() if share is not None}


def explained_share(features: NDArray[np.float64], sides: NDArray[np.float64], folds: NDArray[np.int_]) -> float | None:
    """Return the cross-fitted share of variance of side values `[N, S]` that features `[N, P]` explain.

    It is the mean over the columns with MIN_SCANS known values, in three folds or more, that are not constant; None
    without one. The ridge is chosen over folds too: with one visit left out, others of its person would choose less.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shares = []
    for values in sides.T:
        known = np.isfinite(values)
        truth, groups = values[known], folds[known]
        if known.sum() < MIN_SCANS or not np.ptp(truth) or len(set(groups)) < 3:
            continue
        guess, inputs = np.empty_like(truth), features[known]
        for fold in np.unique(groups):
            inside, inner = groups != fold, PredefinedSplit(groups[groups != fold])
            grid = {"ridge__alpha": RIDGES}
            probe = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), grid, scoring=ERROR, cv=inner)
            guess[~inside] = probe.fit(inputs[inside], truth[inside]).predict(inputs[~inside])
        shares.append(1 - np.square(truth - guess).sum() / np.square(truth - truth.mean()).sum())
    return float(np.mean(shares)) if shares else None


def _moments(latent: Tensor, mask: Tensor) -> Tensor:
    """Return the mean and the log mean square of each channel of `[N, C, ...]` inside the mask, `[N, 2C]`."""
    inside = F.interpolate(mask, size=latent.shape[2:], mode="area") > 0.5
    count = inside.sum(dim=(2, 3, 4)).clamp_min(1)
    means = (latent * inside).sum(dim=(2, 3, 4)) / count
    squares = (latent.square() * inside).sum(dim=(2, 3, 4)) / count
    return torch.cat([means, squares.clamp_min(1e-12).log()], dim=1)
