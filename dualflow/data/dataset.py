"""Preprocessed pairs in memory, and batches of them that can resume at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, default_collate

from dualflow.config import StudyConfig
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import DataError, ShapeError
from dualflow.imaging.geometry import Volume
from dualflow.layout import Layout, Scan

Item = dict[str, Any]


class PairDataset(Dataset[Item]):
    """Scans as dicts: `source` [2C, D, H, W], `target` and bool `mask` [1, D, H, W], `side` [S], and `scan`, the key.

    A source has a channel per source modality, the main one first, and then the detail of each. Scans without a target
    have no `target`; those that train a flow may also have a `mean` and a `spread` [1, D, H, W]. A scan whose target
    shows a part of the mask alone may have `shown`, that part. All scans are in memory: 13 bytes per voxel and scan
    with one source, and 4 bytes more for each further volume. A scan takes 1.7 MB on the 4 mm grid and 13 MB on the 2
    mm grid.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Item:
        return dict(self.items[position])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the grid, D, H, W."""
        depth, height, width = self.items[0]["source"].shape[1:]
        return depth, height, width

    @property
    def side_features(self) -> int:
        """Number S of side values per scan."""
        return len(self.items[0]["side"])

    @property
    def source_channels(self) -> int:
        """Number C of source images. A single one may lack its detail; several must have it."""
        return (len(self.items[0]["source"]) + 1) // 2

    @property
    def scans(self) -> list[str]:
        """Keys of the scans, in order."""
        return [item["scan"] for item in self.items]

    @property
    def subjects(self) -> list[str]:
        """Label of the subject of each scan, in order."""
        return [Scan.parse(key).subject for key in self.scans]

    def subset(self, positions: Sequence[int]) -> Self:
        """Return a dataset of the items at these positions; the volumes are shared, not copied."""
        return type(self)([self.items[position] for position in positions])

    def spaced(self, count: int) -> Self:
        """Return a dataset of at most `count` items, spread over all; the volumes are shared, not copied."""
        chosen = min(count, len(self))
        return self.subset([index * len(self) // chosen for index in range(chosen)])

    def with_scaled_spreads(self, factor: float | torch.Tensor) -> Self:
        """Return a dataset whose items have their `spread`, if any, times a factor, one number or one per voxel.

        Items that share a spread share the result.
        """
        spreads = {id(item["spread"]): item["spread"] for item in self.items if "spread" in item}
        scaled = {key: spread * factor for key, spread in spreads.items()}
        return type(self)([{**i, "spread": scaled[id(i["spread"])]} if "spread" in i else i for i in self.items])

    def with_spread(self, spread: torch.Tensor) -> Self:
        """Return a dataset whose items share a `spread` `[1, D, H, W]`, which augmentation moves with each."""
        return type(self)([{**item, "spread": spread} for item in self.items])

    def with_means(self, means: Sequence[torch.Tensor]) -> Self:
        """Return a dataset whose items also have a `mean` [1, D, H, W]; the volumes are shared, not copied.

        Raises:
            ShapeError: the means do not match the items in number or size.
        """
        if len(means) != len(self.items):
            raise ShapeError(f"{len(means)} means for {len(self.items)} scans; pass one per scan")
        for item, mean in zip(self.items, means, strict=True):
            expected = (1, *item["source"].shape[1:])
            if mean.shape != expected:
                raise ShapeError(f"{item['scan']}: mean of shape {tuple(mean.shape)}, expected {expected}")
        return type(self)([{**item, "mean": mean} for item, mean in zip(self.items, means, strict=True)])


def load_pairs(layout: Layout, pairs: pd.DataFrame, study: StudyConfig, encoder: SideEncoder) -> PairDataset:
    """Read the preprocessed volumes of `pairs` (rows of the index) into memory, as `iterate_pairs`."""
    return PairDataset(list(iterate_pairs(layout, pairs, study, encoder)))


def iterate_pairs(layout: Layout, pairs: pd.DataFrame, study: StudyConfig, encoder: SideEncoder) -> Iterator[Item]:
    """Read the preprocessed volumes of `pairs` (rows of the index) one scan at a time.

    Each file is read once and verified against the digest in its scan's manifest.

    Raises:
        DataError: a scan is not preprocessed, a volume is missing or has changed since, or the grids differ.
    """
    grid: tuple[int, ...] | None = None
    for key, target, side in zip(pairs["scan"], pairs["target"], encoder.encode(pairs), strict=True):
        scan = PreprocessedScan.from_manifest(layout, Scan.parse(key))
        sources = ["source", *study.extra_sources]
        names = {"source": [*sources, *map("{}_detail".format, sources)], "mask": ["mask"]} | (
            {"target": ["target"]} if target else {}
        )
        volumes = {}
        for role, files in names.items():
            volumes[role] = _channels([scan.volume(name) for name in files], grid)
            grid = volumes[role].shape[1:]
        volumes["mask"] = volumes["mask"] > 0.5
        yield {**volumes, "side": side, "scan": key}


def _channels(volumes: Sequence[Volume], grid: tuple[int, ...] | None) -> torch.Tensor:
    """Stack volumes of one grid as channels `[C, D, H, W]`; `grid` None takes the first volume's."""
    grid = volumes[0].array.shape if grid is None else grid
    for volume in volumes:
        if volume.array.shape != grid:
            raise DataError(
                f"{volume.path}: grid {volume.array.shape}, expected {tuple(grid)} as in the other scans; "
                "preprocess the study again with one grid"
            )
    return torch.stack([torch.tensor(volume.array) for volume in volumes])


def collate(items: Sequence[Item]) -> Item:
    """Stack items to a batch: tensors [N, ...], `scan` a list of keys; what targets show is read scan by scan.

    Raises:
        DataError: only some of the items have a target or mean.
    """
    items = [{key: value for key, value in item.items() if key != "shown"} for item in items]
    for item in items:
        if item.keys() != items[0].keys():
            differ = ", ".join(sorted(item.keys() ^ items[0].keys()))
            raise DataError(
                f"{item['scan']} and {items[0]['scan']} differ in: {differ}; batch only scans with the same entries"
            )
    batch: Item = default_collate(items)
    return batch


ALL = slice(None)


def batches(
    dataset: PairDataset,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    rows: slice = ALL,
    augment: Callable[[Item, tuple[int, ...]], Item] | None = None,
) -> Iterator[Item]:
    """Yield batches `start_step` to `steps` - 1 of an endless shuffled stream; each depends only on seed and step.

    Args:
        dataset: the scans.
        batch_size: scans per batch, over all processes.
        steps: end of the stream.
        seed: seed of the order.
        start_step: first batch to yield.
        rows: the rows of each batch that this process takes.
        augment: called with an item and a seed that is unique to step and row.
    """
    for step in range(start_step, steps):
        positions = batch_positions(len(dataset), batch_size, step, seed)
        items = [(row, dataset[position]) for row, position in enumerate(positions)][rows]
        yield collate([item if augment is None else augment(item, (seed, step, row)) for row, item in items])


def batch_positions(length: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Positions of the items of one step.

    The stream concatenates one permutation of all items per epoch, so no item occurs twice in an epoch; a batch may
    span two epochs.

    Raises:
        DataError: there are no items.
    """
    if length == 0:
        raise DataError("no scans to draw batches from; check the splits and the excluded scans")
    first = step * batch_size
    draws = [divmod(index, length) for index in range(first, first + batch_size)]
    orders = {epoch: _order(length, epoch, seed) for epoch, _ in draws}
    return [orders[epoch][position] for epoch, position in draws]


def _order(length: int, epoch: int, seed: int) -> list[int]:
    # numpy mixes both numbers into its state; torch's CPU generator uses only the lower 32 bits of one seed.
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(length).tolist()
    return order
