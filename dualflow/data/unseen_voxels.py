"""Voxels of the brain that a target's field of view does not show: learning takes other people's uptake there."""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.data.dataset import Item, PairDataset
from dualflow.imaging.intensity import in_view, scored_voxels


def fill_unseen(training: PairDataset, validation: PairDataset) -> tuple[PairDataset, PairDataset]:
    """Return training and validation scans as models learn from them.

    Voxels that a target does not show hold the mean of the training targets that do: as they are they would teach
    networks an uptake of 0. Such a scan also has `shown`, by which fits in closed form leave them out. Measurements are
    taken from the scans as they are.
    """
    mean = mean_of_shown(training)
    return with_unseen_filled(training, mean), with_unseen_filled(validation, mean)


def mean_of_shown(dataset: PairDataset) -> Tensor:
    """Return the mean of the targets that show a voxel, `[1, D, H, W]`; NaN where none does."""
    total, count = torch.zeros(()), torch.zeros(())
    for item in dataset.items:
        seen = _shown(item)
        total, count = total + item["target"] * seen, count + seen
    return total / count


def with_unseen_filled(dataset: PairDataset, mean: Tensor) -> PairDataset:
    """Return a dataset whose targets hold `mean` in voxels that they do not show; other targets are not copied.

    Where `mean` is NaN the voxels stay. Scans with such voxels get `shown`, bool, `[1, D, H, W]`.
    """
    return PairDataset([_filled(item, mean) for item in dataset.items])


def unseen(item: Item) -> Tensor:
    """Return the voxels of an item's mask outside its target's field of view, bool, `[1, D, H, W]`."""
    result: Tensor = item["mask"] & ~_shown(item)
    return result


def scored(item: Item) -> Tensor:
    """Return the voxels that an item's target is scored on, by `scored_voxels`, bool, `[1, D, H, W]`."""
    return torch.from_numpy(scored_voxels(item["target"].numpy(), item["mask"].numpy()))


def _shown(item: Item) -> Tensor:
    return torch.from_numpy(in_view(item["target"].numpy(), item["mask"].numpy()))


def _filled(item: Item, mean: Tensor) -> Item:
    missing = unseen(item)
    if not bool(missing.any()):
        return item
    target = torch.where(missing & mean.isfinite(), mean, item["target"])
    return {**item, "target": target, "shown": item["mask"] & ~missing}
