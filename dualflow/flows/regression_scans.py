"""Training scans of a closed-form regression."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dualflow.errors import DataError
from dualflow.flows.voxel_features import images_and_detail


class Pairs(Protocol):
    """Training pairs by position.

    A pair maps `source` to `[C or 2C, D, H, W]`, `target` and bool `mask` to `[1, D, H, W]`, and `side` to `[S]`, NaN
    where unknown. A target that does not show the whole mask comes with `shown`, `[1, D, H, W]`, bool.
    """

    def __len__(self) -> int:
        """Return the number of pairs."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any]:
        """Return one pair."""


def shown(pair: Mapping[str, Any]) -> Tensor:
    """Return the voxels of a pair's mask that its target shows, `[1, D, H, W]`, bool: `shown`, or all of them."""
    voxels: Tensor = pair["shown"] if "shown" in pair else pair["mask"]
    return voxels


class RegressionScan(NamedTuple):
    """One training scan of the regression.

    Attributes:
        source: `[C or 2C, D, H, W]`.
        target: `[1, D, H, W]`, in its unit.
        side: `[S]`, NaN where unknown.
        mask: `[1, D, H, W]`, bool: the voxels of the brain that the target shows.
        fold: index of the cross-fitting fold.
        subject: the same for all scans of a subject.
        detail: of a source that is split into images and detail, `[C, D, H, W]`.
    """

    source: Tensor
    target: Tensor
    side: Tensor
    mask: Tensor
    fold: int
    subject: Hashable
    detail: Tensor | None = None

    def split(self, channels: int) -> RegressionScan:
        """Return the scan with a source of this many images, and the detail apart."""
        if self.detail is not None:
            return self
        images, detail = images_and_detail(self.source[None], channels)
        return self._replace(source=images[0], detail=None if detail is None else detail[0])


class RegressionScans:
    """Training pairs as regression scans; a fit iterates over them several times.

    Args:
        pairs: items with `source`, `target`, `side` and `mask`. If they have no `subjects`, each is a subject.
        folds: fold of each pair.
    """

    def __init__(self, pairs: Pairs, folds: Sequence[int]) -> None:
        self.pairs, self.folds = pairs, folds
        self.subjects: Sequence[Hashable] = getattr(pairs, "subjects", range(len(pairs)))

    def __iter__(self) -> Iterator[RegressionScan]:
        for index, (fold, subject) in enumerate(zip(self.folds, self.subjects, strict=True)):
            pair = self.pairs[index]
            yield RegressionScan(pair["source"], pair["target"], pair["side"], shown(pair), fold, subject)


def side_mean(sides: Sequence[Tensor]) -> Tensor:
    """Return the mean of each side column `[S]` over its known values; 0 for a column that is unknown in all scans."""
    return torch.nan_to_num(torch.stack(list(sides)).float().nanmean(dim=0), nan=0.0)


def check_folds(folds: Sequence[int]) -> None:
    """Raise DataError unless there are two folds or more."""
    if len(set(folds)) < 2:
        raise DataError(
            f"{len(folds)} training scans in {len(set(folds))} folds, expected 2 folds or more for cross-fitting; "
            "train on scans of 2 subjects or more"
        )
