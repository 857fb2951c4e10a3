"""Volumes of imputed draws: samples of the model whose region means are those of the imputed table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dualflow.data.dataset import Item
from dualflow.flows.interface import ConditionalSampler
from dualflow.imaging.regions import RegionMap
from dualflow.training.device import source_and_side


@torch.no_grad()
def draw_volumes(
    model: ConditionalSampler, item: Item, regions: RegionMap, draws: NDArray[np.float64], seed: int
) -> Iterator[NDArray[np.float32]]:
    """Yield a volume `[D, H, W]` per row of `draws`, 0 outside the brain mask; a few are in memory at once.

    The seed that gave the noise of a row gives the same sample again. Each region of the sample is shifted to the drawn
    mean; voxels outside all regions stay.

    Args:
        model: in evaluation mode.
        item: a scan of a PairDataset.
        regions: the atlas on the model grid.
        draws: region means `[K, R]`; a region that is NaN is not shifted.
        seed: of the samples.
    """
    mask, rows = item["mask"][0].numpy(), iter(draws)
    generator = torch.Generator().manual_seed(seed)
    for drawn in model.stream(*source_and_side(item, model), len(draws), 1.0, generator):
        for volume in drawn[:, 0, 0].float().cpu().numpy():
            inside = np.where(mask, volume, 0.0)
            shifts = np.nan_to_num(next(rows) - regions.means(inside, mask))
            yield np.where(mask, inside + np.concatenate([[0.0], shifts])[regions.labels], 0.0).astype(np.float32)
