"""Closed-form fit of a local linear regression: a spatially smoothed ridge regression.

At voxel v, y = beta_v . f_v(source, side). The normal equations A_v = sum f f^T and b_v = sum f y are sums over scans,
accumulated in one streaming pass. Smoothing the sums over space gives a kernel-weighted (local) regression, and the
ridge shrinks each voxel's coefficients towards the coefficients fitted to all voxels. The sums are kept per fold, so
cross-fitted residuals and the choice of the ridge need no further pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dualflow.errors import DataError
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.voxel_features import blur

FOLDS = 4
"""Number of folds of the cross-fit."""
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidate ridge strengths, in scans."""
SIGMAS = (0.7, 1.1, 1.8)
"""Candidate smoothing widths of the sums, in voxels."""
INTERCEPT_VARIANCE = 1e-3
"""Floor of a feature's variance. It makes the penalty of the intercept small, so local levels are learnt first."""
GLOBAL_RIDGE = 1e-4
ROUNDING = 1e-6
"""Share of each diagonal added before a solve, so that float32 rounding does not make a singular matrix indefinite."""
STRIDE = 4
"""Step between the voxels on which ridge and smoothing are compared."""
SOLVE_CHUNK = 2048
SMOOTH_CHUNK = 16


class Pairs(Protocol):
    """Training pairs by position.

    A pair maps `source` to `[C, D, H, W]`, `target` and bool `mask` to `[1, D, H, W]`, and `side` to `[S]`, NaN where
    unknown.
    """

    def __len__(self) -> int:
        """Return the number of pairs."""

    def __getitem__(self, position: int, /) -> Mapping[str, Any]:
        """Return one pair."""


class RegressionScan(NamedTuple):
    """One training scan of the regression.

    Attributes:
        source: `[C, D, H, W]`.
        target: `[1, D, H, W]`, in its unit.
        side: `[S]`, NaN where unknown.
        mask: `[1, D, H, W]`, bool.
        fold: index of the cross-fitting fold.
    """

    source: Tensor
    target: Tensor
    side: Tensor
    mask: Tensor
    fold: int


class RegressionScans:
    """Training pairs as regression scans; a fit iterates over them several times.

    Args:
        pairs: items with `source`, `target`, `side` and `mask`.
        folds: fold of each pair.
    """

    def __init__(self, pairs: Pairs, folds: Sequence[int]) -> None:
        self.pairs, self.folds = pairs, folds

    def __iter__(self) -> Iterator[RegressionScan]:
        for index, fold in enumerate(self.folds):
            pair = self.pairs[index]
            yield RegressionScan(pair["source"], pair["target"], pair["side"], pair["mask"], fold)


class LocalLinearFit:
    """The normal equations of a local linear regression, summed over scans, and their solutions.

    Args:
        model: the regression, which gives the features.
        domain: `[D, H, W]` bool, the voxels with coefficients: the union of the training masks.
        folds: number of folds.

    Raises:
        DataError: the domain is empty.
    """

    def __init__(self, model: LocalLinear, domain: Tensor, folds: int) -> None:
        self.model, self.domain, self.folds = model, domain.bool(), folds
        voxels = int(self.domain.sum())
        if voxels == 0:
            raise DataError("the training masks hold no voxel; check the brain masks of the training scans")
        row, column = torch.triu_indices(model.count, model.count)
        self.unpacking = torch.zeros(model.count, model.count, dtype=torch.long)
        self.unpacking[row, column] = self.unpacking[column, row] = torch.arange(len(row))
        self.unpacking = self.unpacking.flatten()
        self.gram = torch.zeros(folds, len(row), voxels)
        self.moment = torch.zeros(folds, model.count, voxels)
        self.energy = torch.zeros(folds, voxels)

    def add(self, source: Tensor, target: Tensor, side: Tensor, mask: Tensor, fold: int) -> None:
        """Add a scan, with the fields of a RegressionScan, to the sums of its fold; only voxels in its mask count."""
        weight = mask[0][self.domain].float()
        features = self.model.features(source[None], side[None])[0][:, self.domain]
        values = target[0][self.domain].float() * weight
        self.moment[fold].addcmul_(features, values)
        self.energy[fold].addcmul_(values, values)
        weighted, start = features * weight, 0
        for index in range(len(features)):
            length = len(features) - index
            self.gram[fold, start : start + length].addcmul_(weighted[index:], features[index])
            start += length

    def _smooth(self, sums: Tensor, sigma: float) -> Tensor:
        """Smooth maps `[M, V]` over the domain, in place."""
        if sigma == 0:
            return sums
        extents = [self.domain.any(dim=axes).nonzero() for axes in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(int(extent.min()), int(extent.max()) + 1) for extent in extents)
        inside = self.domain[box]
        positions = inside.flatten().nonzero()[:, 0]
        for start in range(0, len(sums), SMOOTH_CHUNK):
            maps = sums[start : start + SMOOTH_CHUNK]
            dense = torch.zeros(len(maps), inside.numel())
            dense.index_copy_(1, positions, maps)
            torch.index_select(blur(dense.view(-1, *inside.shape), sigma).flatten(1), 1, positions, out=maps)
        return sums

    def smoothed(self, sigma: float, exclude: int | None = None) -> tuple[Tensor, Tensor]:
        """Return gram `[P(P+1)/2, V]` and moment `[P, V]` of all folds but `exclude`, smoothed by `sigma` voxels."""
        folds = [fold for fold in range(self.folds) if fold != exclude]
        gram, moment = self.gram[folds[0]].clone(), self.moment[folds[0]].clone()
        for fold in folds[1:]:
            gram += self.gram[fold]
            moment += self.moment[fold]
        return self._smooth(gram, sigma), self._smooth(moment, sigma)

    def _unpack(self, packed: Tensor) -> Tensor:
        """Return the symmetric matrices `[V, P, P]` in float64 of packed upper triangles `[P(P+1)/2, V]`."""
        # Rows are gathered before the transposition, because gathering columns takes several times as long.
        unpacked = packed.index_select(0, self.unpacking).T.double().contiguous()
        return unpacked.view(-1, self.model.count, self.model.count)

    def global_fit(self, gram: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients `[P]` fitted to all voxels, and the variance `[P]` of each feature over them."""
        total, right = self._unpack(gram.double().sum(dim=1, keepdim=True))[0], moment.double().sum(dim=1)
        average = total / total[0, 0]
        variance = (average.diagonal() - average[0] ** 2).clamp_min(INTERCEPT_VARIANCE)
        return torch.linalg.solve(average + GLOBAL_RIDGE * variance.diag(), right / total[0, 0]), variance

    def solve(
        self, gram: Tensor, moment: Tensor, ridges: Sequence[float], global_fit: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """Return the coefficients `[P, V]` of each ridge, from smoothed sums, shrunk towards the global coefficients.

        The ridge has the weight of this many scans that follow the global fit. The penalty of each feature is its
        variance over the brain, so it is isotropic in standardised features. The solve yields the difference from the
        global coefficients, in float64.

        Args:
            gram: `[P(P+1)/2, V]`.
            moment: `[P, V]`.
            ridges: strengths of the penalty, in scans.
            global_fit: result of `global_fit`.
        """
        global_coefficients, variance = global_fit
        parts: list[list[Tensor]] = [[] for _ in ridges]
        for start in range(0, gram.shape[1], SOLVE_CHUNK):
            chunk = slice(start, start + SOLVE_CHUNK)
            matrices = self._unpack(gram[:, chunk])
            residual = moment[:, chunk].T.double() - matrices @ global_coefficients
            matrices.diagonal(dim1=1, dim2=2).mul_(1 + ROUNDING)
            for ridge, part in zip(ridges, parts, strict=True):
                penalised = matrices.clone()
                penalised.diagonal(dim1=1, dim2=2).add_(ridge * variance)
                cholesky = torch.linalg.cholesky(penalised)
                part.append(global_coefficients + torch.cholesky_solve(residual[..., None], cholesky)[..., 0])
        return [torch.cat(part).T.float() for part in parts]

    def held_out_errors(self, coefficients: Sequence[Tensor], fold: int, voxels: slice) -> list[float]:
        """Return the summed squared error of each set of coefficients `[P, v]` on a fold, from the fold's sums."""
        gram, moment = self._unpack(self.gram[fold][:, voxels]), self.moment[fold][:, voxels].T.double()
        energy, errors = self.energy[fold][voxels], []
        for beta in (value.T.double() for value in coefficients):
            quadratic = (beta * (gram @ beta[..., None])[..., 0]).sum(dim=1)
            errors.append(float((energy - 2 * (beta * moment).sum(dim=1) + quadratic).sum()))
        return errors

    def choose(self, ridges: Sequence[float] = RIDGES, sigmas: Sequence[float] = SIGMAS) -> dict[str, float]:
        """Return the ridge and sigma with the smallest cross-fitted squared error, and that error's RMSE."""
        voxels = slice(None, None, STRIDE)
        errors = dict.fromkeys(product(ridges, sigmas), 0.0)
        for sigma, fold in product(sigmas, range(self.folds)):
            gram, moment = self.smoothed(sigma, fold)
            global_fit = self.global_fit(gram, moment)
            coefficients = self.solve(gram[:, voxels], moment[:, voxels], ridges, global_fit)
            for ridge, error in zip(ridges, self.held_out_errors(coefficients, fold, voxels), strict=True):
                errors[ridge, sigma] += error
        ridge, sigma = min(errors, key=errors.__getitem__)
        count = float(self.gram[:, 0, voxels].sum())
        return {"ridge": ridge, "sigma": sigma, "rmse": (max(errors[ridge, sigma], 0.0) / count) ** 0.5}

    def coefficients(self, exclude: int | None, ridge: float, sigma: float) -> Tensor:
        """Return the coefficients `[P, D, H, W]` fitted without fold `exclude`; None fits on all folds."""
        dense = torch.zeros_like(self.model.coefficients)
        gram, moment = self.smoothed(sigma, exclude)
        dense[:, self.domain] = self.solve(gram, moment, [ridge], self.global_fit(gram, moment))[0]
        return dense


class Solver(Protocol):
    """A function that fits a local linear regression: `fit_local_linear`, or a cached version."""

    def __call__(
        self, scans: Iterable[RegressionScan], model: LocalLinear, *, ridges: Sequence[float], sigmas: Sequence[float]
    ) -> tuple[LocalLinear, list[Tensor], dict[str, float]]:
        """Fit `model` in place; return the same as `fit_local_linear`."""


def fit_local_linear(
    scans: Iterable[RegressionScan],
    model: LocalLinear,
    *,
    ridges: Sequence[float] = RIDGES,
    sigmas: Sequence[float] = SIGMAS,
) -> tuple[LocalLinear, list[Tensor], dict[str, float]]:
    """Fit `model` in place, and choose ridge and smoothing by cross-fitting.

    Args:
        scans: training scans, iterated three times (masks and side values; sums; predictions).
        model: receives the coefficients fitted on all scans.
        ridges: candidate strengths, in scans.
        sigmas: candidate smoothing widths of the sums, in voxels.

    Returns:
        The model; the cross-fitted prediction `[1, D, H, W]` of each scan, fitted without the scan's fold; the chosen
        ridge and sigma (voxels) with their rmse.

    Raises:
        DataError: there is no scan, or all scans are in one fold.
    """
    domain = torch.zeros(model.shape, dtype=torch.bool)
    sides, folds = [], []
    for scan in scans:
        domain |= scan.mask[0].bool()
        sides.append(scan.side)
        folds.append(scan.fold)
    if len(set(folds)) < 2:
        raise DataError(f"{len(folds)} training scans in {len(set(folds))} folds; cross-fitting needs 2 folds or more")
    # An unknown value counts as the column's mean, or as 0 if the whole column is unknown.
    model.side_mean.copy_(torch.nan_to_num(torch.stack(sides).float().nanmean(dim=0), nan=0.0))

    fit = LocalLinearFit(model, domain, max(folds) + 1)
    for scan in scans:
        fit.add(*scan)
    chosen = fit.choose(ridges, sigmas)
    held_out = {fold: fit.coefficients(fold, chosen["ridge"], chosen["sigma"]) for fold in sorted(set(folds))}
    predictions = []
    for scan in scans:
        model.coefficients.copy_(held_out[scan.fold])
        predictions.append(model(scan.source[None], scan.side[None])[0])
    model.coefficients.copy_(fit.coefficients(None, chosen["ridge"], chosen["sigma"]))
    return model, predictions, chosen


def grouped_folds(labels: Sequence[str], count: int) -> list[int]:
    """Return a fold for each label; equal labels, such as those of one subject's scans, share a fold."""
    order = {label: index for index, label in enumerate(sorted(set(labels)))}
    return [order[label] % count for label in labels]
