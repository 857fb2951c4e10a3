"""Folds of a cross-fit: balanced over side information, and independent of the order of enrolment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

FOLDS = 4
"""Number of folds of the cross-fit."""
STRATA = 4
"""Number of groups of equal size into which the values of a continuous column are cut."""


def balanced_folds(labels: Sequence[str], side: Tensor | None = None, count: int = FOLDS) -> list[int]:
    """Return a fold for each scan; scans with the same label, such as those of one subject, share a fold.

    Subjects are taken in the order of a hash of their label, and each goes to the fold that has the fewest subjects
    with the same levels so far, summed over the side columns (minimisation, Pocock & Simon 1975). Folds by the order of
    the labels would coincide with scanner, site or period of enrolment.

    Args:
        labels: subject of each scan.
        side: side values of each scan `[N, S]`, NaN where unknown; the first scan of a subject counts.
        count: number of folds.
    """
    first = {label: index for index, label in reversed(list(enumerate(labels)))}
    order = sorted(first, key=_hash)
    levels = _levels(torch.empty(len(labels), 0) if side is None else side[[first[label] for label in order]])
    members: list[Counter[tuple[int, int]]] = [Counter() for _ in range(count)]
    sizes, folds, largest = [0] * count, {}, -(-len(order) // count)
    for position, label in enumerate(order):
        keys = list(enumerate(levels[position] if levels else []))
        open_folds = [fold for fold in range(count) if sizes[fold] < largest]
        # The size counts as much as all columns together, so folds are about equal in size.
        fold = min(
            open_folds,
            key=lambda fold: (
                sum(members[fold][key] for key in keys) + max(len(keys), 1) * sizes[fold],
                _hash(f"{label} {fold}"),
            ),
        )
        folds[label] = fold
        sizes[fold] += 1
        members[fold].update(keys)
    return [folds[label] for label in labels]


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _levels(side: Tensor) -> list[list[int]]:
    """Return the level of each subject `[N]` in each column: -1 if unknown, else a value's rank or its quantile."""
    columns = []
    for column in side.T:
        known = column[~column.isnan()]
        values = known.unique()
        if len(values) > STRATA:
            values = torch.quantile(known, torch.arange(1, STRATA, dtype=known.dtype) / STRATA)
        level = torch.bucketize(column.contiguous(), values)
        columns.append(torch.where(column.isnan(), -1, level).tolist())
    return [list(levels) for levels in zip(*columns, strict=True)]
