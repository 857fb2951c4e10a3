"""Closed-form fit of a local linear regression: a ladder of spatially smoothed ridge regressions.

At voxel v, y = beta_v . f_v(source, side). Smoothing the sums of the normal equations over space gives a
kernel-weighted (local) regression. A ladder goes from coarse to fine. It starts from the coefficients fitted to all
voxels; each rung is a local regression whose ridge shrinks it towards the coefficients of the rung below. On a mirrored
rung a voxel is fitted together with its mirror image in the other hemisphere, so each person counts twice.
Cross-fitting chooses the smoothing and the ridge of each rung.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.normal_equations import NormalEquations
from dualflow.flows.regression_scans import RegressionScan, check_folds, side_mean
from dualflow.flows.voxel_domain import VoxelDomain, extended

_log = logging.getLogger(__name__)

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Candidate ridge strengths, in scans."""
SIGMAS = (0.4, 0.7, 1.1, 1.8)
"""Candidate smoothing widths of the sums, in voxels."""
NEGLIGIBLE_RIDGE = 1e-3
"""Ridges up to this one, in scans, are as good as none."""
STEP = 3
"""Step along each axis between the voxels on which ridge and smoothing are compared."""
MIN_REDUCTION = 1e-3
"""Share of the squared error that a further rung must remove."""


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
        self.model, self.domain, self.folds = model, VoxelDomain(domain), folds
        self.equations = NormalEquations.zeros(folds, model.count, self.domain.size)
        sign = torch.ones(model.count)
        sign[model.odd] = -1
        row, column = torch.triu_indices(model.count, model.count)
        self.signs = sign[row] * sign[column], sign

    def add(self, scan: RegressionScan) -> None:
        """Add a scan to the sums of its fold; only voxels in its mask count."""
        features = self.model.features(scan.source[None], scan.side[None])[0]
        self.add_features(features, scan.target, scan.mask, scan.fold)

    def add_features(self, features: Tensor, target: Tensor, mask: Tensor, fold: int) -> None:
        """Add a scan with features `[P, D, H, W]`."""
        inside = mask[0][self.domain.mask].float()
        self.equations.add(features[:, self.domain.mask], target[0][self.domain.mask].float(), inside, fold)

    def smoothed(
        self, sigma: float, exclude: int | None = None, *, mirrored: bool = False, step: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return gram `[P(P+1)/2, v]` and moment `[P, v]` of all folds but `exclude`, smoothed by `sigma` voxels.

        The mirrored sums add those of the mirror image, with the sign of left-right differences flipped. With a `step`
        only the sums at the voxels of a lattice are returned.
        """
        gram, moment = (
            self.domain.smooth(sums, sigma, sign if mirrored else None, step)
            for sums, sign in zip(self.equations.without(exclude), self.signs, strict=True)
        )
        return gram, moment

    def climb(self, ladder: Sequence[Rung], exclude: int | None = None) -> Tensor:
        """Return the coefficients `[P, V]` at the top of the ladder, fitted without fold `exclude`."""
        coefficients, variance = self._global_fit(exclude)
        for sigma, ridge, mirrored in ladder:
            sums = self.smoothed(sigma, exclude, mirrored=mirrored)
            coefficients = self.equations.solve(*sums, [ridge], coefficients, variance)[0]
        return coefficients.float().expand(-1, self.domain.size)

    def _global_fit(self, exclude: int | None) -> tuple[Tensor, Tensor]:
        """Return the coefficients fitted to all voxels `[P, 1]`, and the variance of each feature `[P]`."""
        coefficients, variance = self.equations.global_fit(*self.equations.without(exclude))
        return coefficients[:, None], variance

    def precision(self, ridge: float) -> Tensor:
        """Return the average normal equations of all scans and the penalty, `[P, P]`."""
        return self.equations.precision(*self.equations.without(), ridge)

    def choose(self, tables: Sequence[RungTable], step: int = STEP) -> tuple[list[Rung], float]:
        """Return the ladder with the smallest cross-fitted squared error, and that error's RMSE.

        The rungs are chosen one after the other, from coarse to fine, on every `step`-th voxel along each axis. A rung
        that hardly reduces the error is left out, except the first.
        """
        sites, ladder, least = self.domain.lattice(step), list[Rung](), float("inf")
        below = [self._global_fit(fold) for fold in range(self.folds)]
        for sigmas, ridges, mirrored in tables:
            candidates = {
                (sigma, ridge): result
                for sigma in sigmas
                for ridge, result in self._descend(sigma, ridges, below, sites, mirrored=mirrored, step=step)
            }
            sigma, ridge = min(candidates, key=lambda key: candidates[key][0])
            error, coefficients = candidates[sigma, ridge]
            if error < (1 - MIN_REDUCTION * bool(ladder)) * least:
                least = error
                below = [(top, variance) for top, (_, variance) in zip(coefficients, below, strict=True)]
                ladder.append(Rung(sigma, ridge, mirrored))
                # A large ridge on a later rung is no edge: its limit is the rung below.
                ceiling = max(ridges) if len(ladder) > 1 else float("inf")
                warn_at_edge("ridge", ridge, ridges, floor=NEGLIGIBLE_RIDGE, ceiling=ceiling)
                warn_at_edge("sigma", sigma, sigmas, floor=min(SIGMAS))
        return ladder, self.equations.rmse(least, sites)

    def _descend(
        self,
        sigma: float,
        ridges: Sequence[float],
        below: Sequence[tuple[Tensor, Tensor]],
        sites: Tensor,
        *,
        mirrored: bool,
        step: int,
    ) -> Iterator[tuple[float, tuple[float, list[Tensor]]]]:
        """Yield ridges, from strong to weak until the error rises, with their error and coefficients of each fold."""
        sums = [self.smoothed(sigma, fold, mirrored=mirrored, step=step) for fold in range(self.folds)]
        least = float("inf")
        for ridge in sorted(ridges, reverse=True):
            coefficients = [
                self.equations.solve(*parts, [ridge], *law)[0] for parts, law in zip(sums, below, strict=True)
            ]
            error = sum(self.equations.held_out_error(beta, fold, sites) for fold, beta in enumerate(coefficients))
            yield ridge, (error, coefficients)
            if error > least:
                return
            least = error

    def coefficients(self, exclude: int | None, ladder: Sequence[Rung]) -> Tensor:
        """Return the coefficients `[P, D, H, W]` fitted without fold `exclude`; None fits on all folds."""
        dense = torch.zeros_like(self.model.coefficients)
        dense[:, self.domain.mask] = self.climb(ladder, exclude)
        return dense


def warn_at_edge(
    name: str, value: float, candidates: Sequence[float], floor: float = 0.0, ceiling: float = float("inf")
) -> None:
    """Log a warning if cross-fitting chose the first or last of the candidates, so a better value may lie outside.

    Values up to `floor` are as good as 0, and those from `ceiling` on as good as infinity; they give no warning.
    """
    if len(candidates) > 1 and value in (min(candidates), max(candidates)) and floor < value < ceiling:
        _log.warning("the fit chose %s %g, at the edge of its candidates %s; widen them", name, value, list(candidates))


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
        fit.add(scan)
    ladder, rmse = fit.choose([RungTable(sigmas, ridges)])
    held_out = {fold: fit.coefficients(fold, ladder) for fold in sorted(set(folds))}
    predictions = []
    for scan in scans:
        model.coefficients.copy_(held_out[scan.fold])
        predictions.append(model(scan.source[None], scan.side[None])[0])
    model.coefficients.copy_(extended(fit.coefficients(None, ladder), domain))
    return model, predictions, {"ridge": ladder[0].ridge, "sigma": ladder[0].sigma, "rmse": rmse}
