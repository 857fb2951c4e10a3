"""Replicates of an imputation: how the drawn values change without some of the subjects.

Rubin's rules overstate the uncertainty of an analysis if the imputation knows more than the analysis does (Meng 1994),
as it does here: it knows the source image, and what regions have in common. Replicates tell the uncertainty without
that assumption: imputation and analysis are repeated without each group of subjects (Rao & Shao 1992, Jackknife
variance estimation with survey data under hot deck imputation, Biometrika 79:811-822).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles
from dualflow.errors import DataError
from dualflow.imputation.proper_draws import RegionScans, regions_that_can_be_fitted
from dualflow.imputation.region_regression import RegionRegression, Regressions, moved_share
from dualflow.models.tensors import read_verified, save_tensors

MOST_GROUPS = 200
"""Most groups of subjects; in a larger study several subjects are left out at a time."""
LEAST_WEIGHT = 1e-9
"""Weight of a group below which some term cannot be estimated without it."""
_CHANGES = ("left_out", "shrinkage")
_TABLE = "table"
"""Metadata of the file: digest of the table that the replicates belong to."""


@dataclass(frozen=True)
class Replicates:
    """Changes of the values of N scans, of which those of measured scans are 0.

    Attributes:
        group: group of each scan `[N]`, the same for all scans of a subject.
        weight: weight of each group in the jackknife's variance `[G]`.
        left_out: changes if one group is left out `[G, N, R]`.
        shrinkage: draws of the errors that slopes have because they move to their mean over regions `[M, N, R]`.
    """

    group: NDArray[np.int64]
    weight: Doubles
    left_out: Doubles
    shrinkage: Doubles

    def outcomes(self, values: Doubles, derive: Callable[[Doubles], Doubles]) -> Replicates:
        """Changes of outcomes that `derive` computes from completed tables `[M, N, R]`, as means over the draws."""
        unchanged = derive(values)
        left_out = np.stack([derive(values + change).mean(axis=0) for change in self.left_out]) - unchanged.mean(axis=0)
        return replace(self, left_out=left_out, shrinkage=derive(values + self.shrinkage) - unchanged)

    def chosen(self, scans: Bools) -> Replicates:
        """The replicates of some of the scans `[N]`."""
        changes = self.left_out[:, scans], self.shrinkage[:, scans]
        return Replicates(self.group[scans], self.weight, *changes)

    def regions(self, columns: NDArray[np.int64]) -> Replicates:
        """The replicates of some of the regions."""
        return replace(self, left_out=self.left_out[:, :, columns], shrinkage=self.shrinkage[:, :, columns])

    def write(self, path: Path, drawn: Bools, table: str) -> None:
        """Write the changes of the `drawn` scans `[N]`, with the digest of the table they belong to."""
        arrays = {name: getattr(self, name)[:, drawn].astype(np.float32) for name in _CHANGES}
        arrays |= {"group": self.group, "weight": self.weight}
        save_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, {_TABLE: table})

    @classmethod
    def read(cls, path: Path, drawn: Bools, table: str) -> Replicates | None:
        """Read what `write` wrote; None if the imputation has no replicates.

        Raises:
            CheckpointError: the file is damaged.
            DataError: it belongs to another table.
        """
        if not path.is_file():
            return None
        tensors, metadata = read_verified(path)
        if metadata.get(_TABLE) != table:
            raise DataError(f"{path}: belongs to another table of imputed regions; run `dualflow impute` again")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        changes = (_of_all(arrays[name], drawn) for name in _CHANGES)
        return cls(arrays["group"], arrays["weight"], *changes)


def _of_all(changes: NDArray[np.floating], drawn: Bools) -> Doubles:
    """Changes of all scans, from those of the drawn ones `[G, Q, R]`."""
    whole = np.zeros((len(changes), len(drawn), changes.shape[2]))
    whole[:, drawn] = changes
    return whole


def subject_groups(subjects: Sequence[str], attempt: int = 0) -> NDArray[np.int64]:
    """Return the group of each scan: one per subject, or MOST_GROUPS of several subjects, others in each attempt."""
    names, position = np.unique(np.asarray(subjects), return_inverse=True)
    order = np.random.default_rng(attempt).permutation(len(names)) if attempt else np.arange(len(names))
    return np.asarray(order[position] % MOST_GROUPS, dtype=np.int64)


def replicate(
    measured: Doubles,
    observed: RegionScans,
    missing: RegionScans,
    informs: Bools,
    drawn: Bools,
    group: NDArray[np.int64],
    seed: int,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Replicates | None:
    """Impute without each group of subjects.

    A slope that moves to the mean over regions by the share w has an error besides that of its estimate: w times its
    distance from the mean, of which the variance T of the slopes over regions tells, and at most the limit of moves.

    Args:
        measured: region means of the scans that inform the draws.
        observed: these scans.
        missing: the scans that were drawn.
        informs: which of the study's N scans are the observed ones.
        drawn: which of them are the missing ones.
        group: group of each scan `[N]`.
        seed: of the errors by shrinkage.
        progress: shows the progress of an iteration over groups.

    Returns:
        None if a term cannot be estimated without some group. The changes of a region are unknown where that is so for
        the scans in which it is measured.
    """
    groups = group[informs]
    weight = _weights(observed.terms.to_numpy(), groups, int(group.max()) + 1)
    if weight is None:
        return None
    known, used = regions_that_can_be_fitted(measured, observed)
    shape = int(drawn.sum()), len(used)
    left_out, shrinkage = np.full((len(weight), *shape), np.nan), np.full((len(missing.noise), *shape), np.nan)
    if used.any():
        fitted = _Fitted(measured[:, used], known[:, used], observed.regions(used), missing.regions(used))
        left_out[:, :, used] = fitted.left_out(groups, len(weight), progress)
        left_out[:, :, ~_can_lose_groups(observed.terms.to_numpy(), known, groups)] = np.nan
        shrinkage[:, :, used] = fitted.shrinkage(len(shrinkage), seed)
    return Replicates(group, weight, _of_all(left_out, drawn), _of_all(shrinkage, drawn))


def _weights(terms: Doubles, groups: NDArray[np.int64], count: int) -> Doubles | None:
    """Weights det(I - H_g)^(1/r) of the groups; None if one is 0.

    H_g is the group's block of the hat matrix of terms `[N, K]`, and r the rank of its rows. Coefficients without a
    group that the terms depend on vary too much, and by these weights less (Wu 1986, Jackknife, bootstrap and other
    resampling methods in regression analysis, Annals of Statistics 14:1261-1295).
    """
    inverse, weights = np.linalg.pinv(terms), np.ones(count)
    for group in np.unique(groups):
        rows = groups == group
        left = max(float(np.linalg.det(np.eye(rows.sum()) - terms[rows] @ inverse[:, rows])), 0.0)
        # A change in one direction is too large by the share that is left there, of which the determinant has r.
        weights[group] = left ** (1 / np.linalg.matrix_rank(terms[rows])) if left > LEAST_WEIGHT else 0.0
    return weights if weights.all() else None


def _can_lose_groups(terms: Doubles, known: Bools, groups: NDArray[np.int64]) -> Bools:
    """Whether the scans that know a region `[N, R]` tell the terms `[N, K]` apart without any of the groups `[R]`."""
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    count = int(groups.max()) + 1
    can = [_weights(terms[rows], groups[rows], count) is not None for rows in patterns.T]
    return np.array(can)[pattern_of.reshape(-1)]


class _Fitted:
    """The regression of the measured regions, and the values that it expects of the missing scans."""

    def __init__(self, measured: Doubles, known: Bools, observed: RegionScans, missing: RegionScans) -> None:
        self._measured, self._known, self._observed, self._missing = measured, known, observed, missing
        self._regression = self._on(np.ones(len(measured), dtype=bool))
        self._fit = self._regression.fit(measured)

    def left_out(
        self, groups: NDArray[np.int64], count: int, progress: Callable[[Sequence[int]], Iterable[int]]
    ) -> Doubles:
        """Changes of the expected values without each group `[G, Q, R]`."""
        expected = self._expected(self._regression, self._fit)
        changes = np.repeat(np.where(np.isfinite(expected), 0.0, np.nan)[None], count, axis=0)
        for group in progress([int(group) for group in np.unique(groups)]):
            rows = groups != group
            part = self._on(rows)
            changes[group] = self._expected(part, part.fit(self._measured[rows])) - expected
        return changes

    def shrinkage(self, draws: int, seed: int) -> Doubles:
        """Draws of the errors by shrinkage `[M, Q, R]`."""
        fit = self._fit
        standard = np.random.default_rng([seed, 1]).normal(size=(draws, *fit.slopes.shape))
        moves = moved_share(fit.between, fit.errors) * np.sqrt(fit.between) * standard
        errors = fit._replace(level=np.zeros((draws, len(fit.level))), slopes=np.clip(moves, -fit.limit, fit.limit))
        return self._expected(self._regression, errors)

    def _on(self, rows: Bools) -> RegionRegression:
        scans = self._observed
        return RegionRegression(
            scans.slope_terms[rows], scans.prediction[rows], self._known[rows], scans.noise[:, rows]
        )

    def _expected(self, regression: RegionRegression, fit: Regressions) -> Doubles:
        return regression.values(fit, self._missing.slope_terms, self._missing.prediction)
