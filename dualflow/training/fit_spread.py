"""Closed-form fit of a flow's spread to the residuals of training pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dualflow.baselines.scale_fit import fit_scale
from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.model import DualFlow
from dualflow.flows.person_features import person_values
from dualflow.flows.source_spread import SourceSpread, voxel_features
from dualflow.flows.spread_map import VoxelSpread
from dualflow.flows.voxel_features import foreground

VOXELS = 300_000
"""Maximum number of voxels, of all scans together, whose errors determine the scale of voxels."""


@torch.no_grad()
def fit_spread(flow: DualFlow, train: PairDataset, folds: Sequence[int]) -> PairDataset:
    """Fit the flow's spread in place to the residuals of training pairs, cross-fitted where their means are.

    Args:
        flow: a flow with a fitted mean, on the CPU.
        train: training pairs.
        folds: cross-fitting fold of each pair.

    Returns:
        The pairs; if the spread follows the source, each with its `spread` relative to other people's scans.
    """
    spread = flow.spread
    if not isinstance(spread, VoxelSpread):
        return train
    squares, counts = torch.zeros(1, *flow.shape), torch.zeros(1, *flow.shape)
    for item, square in _squares(flow, train):
        squares += square
        counts += item["mask"]
    spread.fit(squares, counts)
    if not isinstance(spread, SourceSpread):
        return train
    _fit_scales(spread, flow, train, folds)
    units = _units(spread, train)
    return PairDataset([{**item, "spread": unit} for item, unit in zip(train.items, units, strict=True)])


def _fit_scales(spread: SourceSpread, flow: DualFlow, train: PairDataset, folds: Sequence[int]) -> None:
    """Fit the scale of voxels to the squared residuals of some voxels, and that of people to what it leaves."""
    spread.usual.fit(*zip(*map(_source_and_brain, train.items), strict=True))
    features, errors, people = [], [], []
    generator = torch.Generator().manual_seed(0)
    for (item, square), deviation in zip(_squares(flow, train), _deviations(spread, train), strict=True):
        inside = item["mask"][0]
        relative = (square / spread.image.square())[0][inside]
        chosen = torch.randperm(len(relative), generator=generator)[: VOXELS // len(train)]
        features.append(voxel_features(item["source"][None], deviation[None])[0][inside][chosen])
        errors.append(relative[chosen])
        people.append(person_values(item["source"][None], item["side"][None])[0])
    voxel_folds = [fold for fold, error in zip(folds, errors, strict=True) for _ in error]
    fit_scale(spread.voxel, torch.cat(features), torch.cat(errors), voxel_folds)
    rest = [(error / spread.voxel(values).square()).mean() for error, values in zip(errors, features, strict=True)]
    fit_scale(spread.person, torch.stack(people), torch.stack(rest), folds)


def _units(spread: SourceSpread, train: PairDataset) -> Iterator[Tensor]:
    """Yield the spread of every scan, `[1, D, H, W]`, relative to other people's scans."""
    for item, deviation in zip(train.items, _deviations(spread, train), strict=True):
        source, side = item["source"][None], item["side"][None]
        yield spread.unit(foreground(source), source, side, deviation[None])[0]


def _deviations(spread: SourceSpread, train: PairDataset) -> Iterator[Tensor]:
    """Yield the deviation of every scan, `[C, D, H, W]`, from other people's scans.

    From a mean that contains them, training people would look more usual than new people do.
    """
    scans: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for subject, item in zip(train.subjects, train.items, strict=True):
        scans.setdefault(subject, []).append(_source_and_brain(item))
    for subject, item in zip(train.subjects, train.items, strict=True):
        yield spread.usual.deviation(*_source_and_brain(item), left_out=scans[subject])


def _source_and_brain(item: Item) -> tuple[Tensor, Tensor]:
    """Return the source of a pair and where it has brain, `[D, H, W]`."""
    return item["source"], foreground(item["source"][None])[0, 0]


def _squares(flow: DualFlow, train: PairDataset) -> Iterator[tuple[Item, Tensor]]:
    """Yield every pair with its squared residuals in the mask, `[1, D, H, W]`."""
    for index in range(len(train)):
        item = train[index]
        mean = item["mean"] if "mean" in item else flow.mean(item["source"][None], item["side"][None])[0]
        yield item, (item["target"] - mean).square() * item["mask"]
