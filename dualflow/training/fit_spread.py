"""Closed-form fit of a flow's spread to the residuals of training pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from dualflow.baselines.scale_fit import fit_scale
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.model import DualFlow
from dualflow.flows.person_features import person_values
from dualflow.flows.source_spread import SourceSpread, SourceSums
from dualflow.flows.spread_map import VoxelSpread

VOXELS = 300_000
"""Maximum number of voxels, of all scans together, whose errors determine the scale of voxels."""


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
    """Fit the scale of voxels to the squared residuals of some voxels, and that of people to what it leaves."""
    total = reduce(SourceSums.plus, (SourceSums.of(item["source"]) for item in train.items))
    features, errors, people = [], [], []
    generator = torch.Generator().manual_seed(0)
    for (item, square), voxels in zip(_squares(flow, train), _features(spread, train, total), strict=True):
        inside = item["mask"][0]
        relative = (square / spread.image.square())[0][inside]
        chosen = torch.randperm(len(relative), generator=generator)[: VOXELS // len(train)]
        features.append(voxels[inside][chosen])
        errors.append(relative[chosen])
        people.append(person_values(item["source"][None], item["side"][None])[0])
    spread.set_sources(total, len(train))
    voxel_folds = [fold for fold, error in zip(folds, errors, strict=True) for _ in error]
    fit_scale(spread.voxel, torch.cat(features), torch.cat(errors), voxel_folds)
    rest = [(error / spread.voxel(values).square()).mean() for error, values in zip(errors, features, strict=True)]
    fit_scale(spread.person, torch.stack(people), torch.stack(rest), folds)


def _features(spread: SourceSpread, train: PairDataset, total: SourceSums) -> Iterator[Tensor]:
    """Yield the voxel features of every scan, `[D, H, W, 4C]`, relative to other people's scans; `total` sums all.

    Relative to a mean that contains them, training people would look more usual than new people do.
    """
    scans: dict[str, list[Tensor]] = {}
    for subject, item in zip(train.subjects, train.items, strict=True):
        scans.setdefault(subject, []).append(item["source"])
    for subject, item in zip(train.subjects, train.items, strict=True):
        theirs = reduce(SourceSums.plus, map(SourceSums.of, scans[subject]))
        spread.set_sources(total.plus(theirs, -1.0), len(train) - len(scans[subject]))
        yield spread.voxel_features(item["source"][None])[0]


def _squares(flow: DualFlow, train: PairDataset) -> Iterator[tuple[Item, Tensor]]:
    """Yield every pair with its squared residuals in the mask, `[1, D, H, W]`."""
    for index in range(len(train)):
        item = train[index]
        mean = item["mean"] if "mean" in item else flow.mean(item["source"][None], item["side"][None])[0]
        yield item, (item["target"] - mean).square() * item["mask"]
