"""Closed-form fit of a flow's spread to the residuals of training pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dualflow.baselines.scale_fit import fit_scale, fit_voxel_scale
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.model import DualFlow
from dualflow.flows.person_features import person_values
from dualflow.flows.regression_scans import shown
from dualflow.flows.source_spread import SourceSpread
from dualflow.flows.spread_map import VoxelSpread
from dualflow.flows.voxel_features import foreground, without_detail


@torch.no_grad()
def fit_spread(flow: DualFlow, train: PairDataset, folds: Sequence[int]) -> PairDataset:
    """Fit the flow's spread in place to the residuals of training pairs, cross-fitted where their means are.

    Args:
        flow: a flow with a fitted mean, on the CPU.
        train: training pairs.
        folds: cross-fitting fold of each pair.

    Returns:
        The pairs, each with its `spread`, which augmentation moves with the scan; no spread if that is constant. If it
        follows the source, it is what the person's would be as a new one's: the scale of the person is cross-fitted,
        and that of the voxels is relative to other people's scans.
    """
    spread = flow.spread
    if not isinstance(spread, VoxelSpread):
        return train
    squares, counts = torch.zeros(1, *flow.shape), torch.zeros(1, *flow.shape)
    for item, square in _squares(flow, train):
        squares += square
        counts += shown(item)
    spread.fit(squares, counts)
    if not isinstance(spread, SourceSpread):
        return train.with_spread(spread.image.clone())
    units = _fit_scales(spread, flow, train, folds)
    return PairDataset([{**item, "spread": unit} for item, unit in zip(train.items, units, strict=True)])


def _fit_scales(spread: SourceSpread, flow: DualFlow, train: PairDataset, folds: Sequence[int]) -> list[Tensor]:
    """Fit the scale of voxels, and that of people to what it leaves; return each scan's spread, `[1, D, H, W]`."""
    sources = [without_detail(item["source"], flow.source_channels) for item in train.items]
    relative = (((square / spread.image.square())[0], shown(item)[0]) for item, square in _squares(flow, train))
    voxel_scales, left = fit_voxel_scale(spread.voxel, sources, relative, folds, train.subjects)
    people = zip(sources, train.items, strict=True)
    values = torch.cat([person_values(source[None], item["side"][None]) for source, item in people])
    person_scales = fit_scale(spread.person, values, left, folds)
    return [
        spread.unit(foreground(source[None]), person[None], voxel[None])[0]
        for source, person, voxel in zip(sources, person_scales, voxel_scales, strict=True)
    ]


def _squares(flow: DualFlow, train: PairDataset) -> Iterator[tuple[Item, Tensor]]:
    """Yield every pair with its squared residuals in the voxels that the target shows, `[1, D, H, W]`."""
    for index in range(len(train)):
        item = train[index]
        yield item, (item["target"] - mean_of(flow, item)).square() * shown(item)


def mean_of(flow: DualFlow, item: Item) -> Tensor:
    """Return the mean image of a pair, `[1, D, H, W]`: its cross-fitted one, or else the flow's."""
    mean: Tensor = item["mean"] if "mean" in item else flow.mean(item["source"][None], item["side"][None])[0]
    return mean
