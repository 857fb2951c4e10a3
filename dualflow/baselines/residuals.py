"""Cross-fitted errors of training people, and the map of their size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualflow.flows.regression_scans import Pairs, shown
from dualflow.flows.voxel_features import blur
from dualflow.layout import Scan

SMOOTHING = (0.5, 0.8, 1.2, 1.8, 2.7)
"""Candidate widths, in voxels, of the smoothing of a spread map."""
PRIOR_PEOPLE = 2.0
"""Weight, in people, with which the variance of a voxel or region is shrunk to the average variance."""


class Residual(NamedTuple):
    """Errors of one training scan.

    Attributes:
        error: target minus a mean fitted without this person, `[1, D, H, W]`.
        mask: `[1, D, H, W]`, bool.
        source: `[C or 2C, D, H, W]`.
        side: `[S]`, NaN where unknown.
        fold: index of the cross-fitting fold.
        person: label of the person; each has one or several scans.
        unseen: voxels of the brain that the target does not show, `[1, D, H, W]`, bool; None if it shows all.
    """

    error: Tensor
    mask: Tensor
    source: Tensor
    side: Tensor
    fold: int
    person: str
    unseen: Tensor | None = None


class ResidualScans:
    """Errors of training pairs; a fit iterates over them several times.

    Args:
        pairs: items with `source`, `target`, `side` and `mask`.
        images: cross-fitted mean of each pair, `[1, D, H, W]`.
        folds: fold of each pair.
    """

    def __init__(self, pairs: Pairs, images: Sequence[Tensor], folds: Sequence[int]) -> None:
        self.pairs, self.images, self.folds = pairs, images, folds

    def __iter__(self) -> Iterator[Residual]:
        for index, (image, fold) in enumerate(zip(self.images, self.folds, strict=True)):
            pair = self.pairs[index]
            seen = shown(pair)
            error = torch.where(seen, pair["target"] - image, 0.0)
            unseen = pair["mask"] & ~seen if "shown" in pair else None
            person = Scan.parse(pair["scan"]).subject if "scan" in pair else str(index)
            yield Residual(error, seen, pair["source"], pair["side"], fold, person, unseen)


def spread_map(residuals: Iterable[Residual], scales: Tensor | None = None) -> Tensor:
    """Return the root mean squared error `[D, H, W]`, smoothed over space.

    Held-out likelihood of the folds chooses the width of the smoothing.

    Args:
        residuals: of the training people.
        scales: `[N]`, by which the error of each person is divided; None for 1.
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    for index, residual in enumerate(residuals):
        scale = 1.0 if scales is None else scales[index]
        square = (residual.error[0] / scale).square() * residual.mask[0]
        sums[residual.fold] = sums.get(residual.fold, 0) + square
        counts[residual.fold] = counts.get(residual.fold, 0) + residual.mask[0].float()
    energy, count = torch.stack(list(sums.values())), torch.stack(list(counts.values()))
    losses = dict.fromkeys(SMOOTHING, 0.0)
    for width in SMOOTHING:
        for fold in range(len(energy)):
            others = [other for other in range(len(energy)) if other != fold] or [fold]
            variance = _smoothed(energy[others].sum(dim=0), count[others].sum(dim=0), width)
            losses[width] += float((count[fold] * variance.log() + energy[fold] / variance).sum(dtype=torch.float64))
    return _smoothed(energy.sum(dim=0), count.sum(dim=0), min(losses, key=losses.__getitem__)).sqrt()


def _smoothed(energy: Tensor, count: Tensor, width: float) -> Tensor:
    """Return the variance of each voxel from smoothed sums, shrunk to the average over all voxels."""
    average = energy.sum() / count.sum().clamp_min(1)
    shrunk = (blur(energy, width) + PRIOR_PEOPLE * average) / (blur(count, width) + PRIOR_PEOPLE)
    return shrunk.clamp_min(1e-12)
