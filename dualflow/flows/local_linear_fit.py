"""Closed-form fit of a local linear regression: a ladder of spatially smoothed ridge regressions.

At voxel v, y = beta_v . f_v(source, side). Smoothing the sums of the normal equations over space gives a
kernel-weighted (local) regression. A ladder goes from coarse to fine. It starts from the coefficients fitted to all
voxels; each rung is a local regression whose ridge shrinks it towards the coefficients of the rung below. On a mirrored
rung a voxel is fitted together with its mirror image in the other hemisphere, so each person counts twice.
Cross-fitting chooses the smoothing and the ridge of each rung.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dualflow.errors import DataError
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.normal_equations import NormalEquations
from dualflow.flows.regression_scans import RegressionScan, check_folds, side_mean
from dualflow.flows.voxel_features import blur

_log = logging.getLogger(__name__)

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Candidate ridge strengths, in scans."""
SIGMAS = (0.4, 0.7, 1.1, 1.8)
"""Candidate smoothing widths of the sums, in voxels."""
NEGLIGIBLE_RIDGE = 1e-3
"""Ridges up to this one, in scans, are as good as none."""
STRIDE = 4
"""Step between the voxels on which ridge and smoothing are compared."""
SMOOTH_CHUNK = 16


class Rung(NamedTuple):
    """One local regression of a ladder.

    Attributes:
        sigma: smoothing width of the sums, in voxels.
        ridge: weight of the rung below, in scans.
        mirrored: whether a voxel is fitted together with its mirror image.
    """

    sigma: float
    ridge: float
    mirrored: bool = False


class RungTable(NamedTuple):
    """Candidates of one rung: every pair of a sigma and a ridge."""

    sigmas: Sequence[float]
    ridges: Sequence[float]
    mirrored: bool = False


class LocalLinearFit:
    """The normal equations of a local linear regression, summed over scans, and their solutions.

    Args:
        model: the regression, which gives the features.
        domain: `[D, H, W]` bool, the voxels with coefficients: the union of the training masks. The grid is symmetric
            about the midsagittal plane, so flipping axis 0 is the reflection of the brain.
        folds: number of folds.

    Raises:
        DataError: the domain is empty.
    """

    def __init__(self, model: LocalLinear, domain: Tensor, folds: int) -> None:
        self.model, self.domain, self.folds = model, domain.bool(), folds
        voxels = int(self.domain.sum())
        if voxels == 0:
            raise DataError("the training masks hold no voxel; check the brain masks of the training scans")
        self.equations = NormalEquations.zeros(folds, model.count, voxels)
        index = torch.full(self.domain.shape, -1)
        index[self.domain] = torch.arange(voxels)
        self.mirror = index.flip(0)[self.domain]
        """Position of each voxel's mirror image, -1 outside the domain."""
        self.sign = torch.ones(model.count)
        self.sign[model.odd] = -1
        row, column = torch.triu_indices(model.count, model.count)
        self.pair_sign = self.sign[row] * self.sign[column]

    def add(self, source: Tensor, target: Tensor, side: Tensor, mask: Tensor, fold: int) -> None:
        """Add a scan, with the fields of a RegressionScan, to the sums of its fold; only voxels in its mask count."""
        self.add_features(self.model.features(source[None], side[None])[0], target, mask, fold)

    def add_features(self, features: Tensor, target: Tensor, mask: Tensor, fold: int) -> None:
        """Add a scan with features `[P, D, H, W]`."""
        inside = mask[0][self.domain].float()
        self.equations.add(features[:, self.domain], target[0][self.domain].float(), inside, fold)

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

    def smoothed(
        self, sigma: float, exclude: int | None = None, *, mirrored: bool = False, sites: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Return gram `[P(P+1)/2, v]` and moment `[P, v]` of all folds but `exclude`, smoothed by `sigma` voxels.

        The mirrored sums add those of the mirror image, with the sign of left-right differences flipped.
        """
        gram, moment = (self._smooth(sums, sigma) for sums in self.equations.without(exclude))
        if not mirrored:
            return gram[:, sites], moment[:, sites]
        image, exists = self.mirror[sites].clamp_min(0), (self.mirror[sites] >= 0).float()
        return (
            gram[:, sites].addcmul(gram[:, image] * exists, self.pair_sign[:, None]),
            moment[:, sites].addcmul(moment[:, image] * exists, self.sign[:, None]),
        )

    def climb(self, ladder: Sequence[Rung], exclude: int | None = None) -> Tensor:
        """Return the coefficients `[P, V]` at the top of the ladder, fitted without fold `exclude`."""
        coefficients, variance = self._global_fit(exclude)
        for sigma, ridge, mirrored in ladder:
            sums = self.smoothed(sigma, exclude, mirrored=mirrored)
            coefficients = self.equations.solve(*sums, [ridge], coefficients, variance)[0]
        return coefficients.float().expand(-1, self.equations.gram.shape[2])

    def _global_fit(self, exclude: int | None) -> tuple[Tensor, Tensor]:
        """Return the coefficients fitted to all voxels `[P, 1]`, and the variance of each feature `[P]`."""
        coefficients, variance = self.equations.global_fit(*self.equations.without(exclude))
        return coefficients[:, None], variance

    def choose(self, tables: Sequence[RungTable], stride: int = STRIDE) -> tuple[list[Rung], float]:
        """Return the ladder with the smallest cross-fitted squared error, and that error's RMSE.

        The rungs are chosen one after the other, from coarse to fine, on every `stride`-th voxel. A rung that does not
        reduce the error is left out, except the first.
        """
        sites, ladder = slice(None, None, stride), list[Rung]()
        below = [self._global_fit(fold) for fold in range(self.folds)]
        least = float("inf")
        for sigmas, ridges, mirrored in tables:
            errors = dict.fromkeys(product(sigmas, ridges), 0.0)
            solved: dict[tuple[float, float], list[Tensor]] = {key: [] for key in errors}
            for sigma, fold in product(sigmas, range(self.folds)):
                sums = self.smoothed(sigma, fold, mirrored=mirrored, sites=sites)
                coefficients = self.equations.solve(*sums, ridges, *below[fold])
                held_out = self.equations.held_out_errors(coefficients, fold, sites)
                for ridge, error, one in zip(ridges, held_out, coefficients, strict=True):
                    errors[sigma, ridge] += error
                    solved[sigma, ridge].append(one)
            sigma, ridge = best = min(errors, key=errors.__getitem__)
            if errors[best] < least:
                least = errors[best]
                below = [(one, variance) for one, (_, variance) in zip(solved[best], below, strict=True)]
                ladder.append(Rung(sigma, ridge, mirrored))
                # A large ridge on a later rung is no edge: its limit is the rung below.
                ceiling = max(ridges) if len(ladder) > 1 else float("inf")
                warn_at_edge("ridge", ridge, ridges, floor=NEGLIGIBLE_RIDGE, ceiling=ceiling)
                warn_at_edge("sigma", sigma, sigmas)
        return ladder, self.equations.rmse(least, sites)

    def coefficients(self, exclude: int | None, ladder: Sequence[Rung]) -> Tensor:
        """Return the coefficients `[P, D, H, W]` fitted without fold `exclude`; None fits on all folds."""
        dense = torch.zeros_like(self.model.coefficients)
        dense[:, self.domain] = self.climb(ladder, exclude)
        return dense


def warn_at_edge(
    name: str, value: float, candidates: Sequence[float], floor: float = 0.0, ceiling: float = float("inf")
) -> None:
    """Log a warning if cross-fitting chose the first or last of the candidates, so a better value may lie outside.

    Values up to `floor` are as good as 0, and those from `ceiling` on as good as infinity; they give no warning.
    """
    if len(candidates) > 1 and value in (min(candidates), max(candidates)) and floor < value < ceiling:
        _log.warning(
            "cross-fitting chose %s %g, at the edge of its candidates %s; widen them", name, value, list(candidates)
        )


def fit_local_linear(
    scans: Iterable[RegressionScan],
    model: LocalLinear,
    *,
    ridges: Sequence[float] = RIDGES,
    sigmas: Sequence[float] = SIGMAS,
) -> tuple[LocalLinear, list[Tensor], dict[str, Any]]:
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
    check_folds(folds)
    model.side_mean.copy_(side_mean(sides))

    fit = LocalLinearFit(model, domain, max(folds) + 1)
    for scan in scans:
        fit.add(*scan)
    ladder, rmse = fit.choose([RungTable(sigmas, ridges)])
    held_out = {fold: fit.coefficients(fold, ladder) for fold in sorted(set(folds))}
    predictions = []
    for scan in scans:
        model.coefficients.copy_(held_out[scan.fold])
        predictions.append(model(scan.source[None], scan.side[None])[0])
    model.coefficients.copy_(fit.coefficients(None, ladder))
    return model, predictions, {"ridge": ladder[0].ridge, "sigma": ladder[0].sigma, "rmse": rmse}
