"""Closed-form fit of a flow's spread to the residuals of training pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dualflow.baselines.scale_fit import fit_scale
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.model import DualFlow
from dualflow.flows.person_features import person_values
from dualflow.flows.source_spread import BLUR, SourceSpread
from dualflow.flows.spread_map import VoxelSpread
from dualflow.flows.voxel_features import blur

VOXELS = 2000
"""Maximum number of voxels per scan whose errors determine the scale of voxels."""


@torch.no_grad()
def fit_spread(flow: DualFlow, train: PairDataset, folds: Sequence[int]) -> None:
    """Fit the flow's spread in place to the residuals of training pairs, cross-fitted where their means are.

    Args:
        flow: a flow with a fitted mean, on the CPU.
        train: training pairs.
        folds: cross-fitting fold of each pair.
    """
    spread = flow.spread
    if not isinstance(spread, VoxelSpread):
        return
    squares, counts = torch.zeros(1, *flow.shape), torch.zeros(1, *flow.shape)
    for item, square in _squares(flow, train):
        squares += square
        counts += item["mask"]
    spread.fit(squares, counts)
    if isinstance(spread, SourceSpread):
        _fit_scales(spread, flow, train, folds)


def _fit_scales(spread: SourceSpread, flow: DualFlow, train: PairDataset, folds: Sequence[int]) -> None:
    """Fit the scale of people to their mean squared residuals, and that of voxels to what it leaves."""
    mean, square = torch.zeros_like(spread.centre), torch.zeros_like(spread.centre)
    for item in train.items:
        blurred = blur(item["source"], BLUR)
        mean += blurred / len(train)
        square += blurred.square() / len(train)
    spread.set_sources(mean, square)
    generator = torch.Generator().manual_seed(0)
    people, energies, rows, errors, row_folds = [], [], [], [], []
    for (item, square), fold in zip(_squares(flow, train), folds, strict=True):
        inside = item["mask"][0]
        relative = (square / spread.image.square())[0][inside]
        chosen = torch.randperm(len(relative), generator=generator)[:VOXELS]
        people.append(person_values(item["source"][None], item["side"][None])[0])
        energies.append(relative.mean())
        rows.append(spread.voxel_features(item["source"][None])[0][inside][chosen])
        errors.append(relative[chosen])
        row_folds += [fold] * len(chosen)
    scales = fit_scale(spread.person, torch.stack(people), torch.stack(energies), folds)
    shares = [error / scale.square() for error, scale in zip(errors, scales, strict=True)]
    fit_scale(spread.voxel, torch.cat(rows), torch.cat(shares), row_folds)


def _squares(flow: DualFlow, train: PairDataset) -> Iterator[tuple[Item, Tensor]]:
    """Yield every pair with its squared residuals in the mask, `[1, D, H, W]`."""
    for index in range(len(train)):
        item = train[index]
        mean = item["mean"] if "mean" in item else flow.mean(item["source"][None], item["side"][None])[0]
        yield item, (item["target"] - mean).square() * item["mask"]
