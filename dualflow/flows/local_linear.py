"""Local linear regression: the target's mean in closed form, a ridge regression per voxel sharing with its neighbours.

At voxel v, y = beta_v . f_v(source, side). The normal equations A_v = sum f f^T and b_v = sum f y are sums over scans,
so one streaming pass holds all that is learnt; smoothing them over space is a kernel-weighted (local) regression, and
the ridge draws each voxel towards the coefficients of all voxels together. Sums are kept per fold: leaving one out
gives the regression without it, so honest residuals of the training scans and the ridge's strength follow at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.errors import DataError, ShapeError
from dualflow.flows.voxel_features import TissueFeatures, VoxelFeatures, blur, foreground

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
SIGMAS = (0.7, 1.1, 1.8)
# The constant feature is all but free: where the level differs from the global law is the first thing to learn.
INTERCEPT_VARIANCE = 1e-3
GLOBAL_RIDGE = 1e-4
# The sums are float32: this share of each diagonal keeps a singular system from being indefinite by their rounding.
ROUNDING = 1e-6
# Strengths are compared on every fourth voxel, which are enough to rank them.
STRIDE = 4
SOLVE_CHUNK = 2048
SMOOTH_CHUNK = 16


class RegressionScan(NamedTuple):
    """One training scan: source `[C, D, H, W]`, target and bool mask `[1, D, H, W]`, side `[S]` (NaN unknown), fold."""

    source: Tensor
    target: Tensor
    side: Tensor
    mask: Tensor
    fold: int


class LocalLinear(nn.Module):
    """The fitted law; its coefficients are buffers, zero (so predicting the background) outside the training masks.

    Where the source is exactly 0, its value outside the person's brain mask, the prediction is 0 too: a flow shifted by
    it sees no residual there.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
        design: the features.
    """

    coefficients: Tensor
    side_mean: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        *,
        design: VoxelFeatures | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.side_features, self.source_channels = tuple(shape), side_features, source_channels
        self.design = TissueFeatures() if design is None else design
        self.count = self.design.count(side_features, source_channels)
        self.register_buffer("coefficients", torch.zeros(self.count, *shape))
        self.register_buffer("side_mean", torch.zeros(side_features))

    def features(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the features `[N, P, D, H, W]`; an unknown side value counts as its training mean.

        Raises:
            ShapeError: the source is not `[N, C, D, H, W]` on the model's grid, or side not `[N, S]`.
        """
        expected = (self.source_channels, *self.shape)
        if source.ndim != 5 or tuple(source.shape[1:]) != expected:
            raise ShapeError(f"source is {tuple(source.shape)}; expected [N, {', '.join(map(str, expected))}]")
        if side is None:
            side = source.new_full((source.shape[0], self.side_features), torch.nan)
        if side.shape != (source.shape[0], self.side_features):
            raise ShapeError(
                f"side is {tuple(side.shape)}; expected [{source.shape[0]}, {self.side_features}], NaN where unknown"
            )
        # Differences of blurred maps do not survive bfloat16.
        with torch.autocast(source.device.type, enabled=False):
            return self.design(source.float(), torch.nan_to_num(side.float() - self.side_mean, nan=0.0))

    def forward(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the conditional mean `[N, 1, D, H, W]`, in the target's unit."""
        features = self.features(source, side)
        # Voxels outside this person's own brain are exactly the source's background, and so background here.
        return (features * self.coefficients).sum(dim=1, keepdim=True) * foreground(source)


class LocalLinearFit:
    """The sums of one streaming pass, and the laws that follow from them.

    Args:
        model: the law to be fitted: gives the features.
        domain: `[D, H, W]` bool, the voxels that get coefficients: the union of the training masks.
        folds: number of folds.
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
        """Add one scan, its values as in `RegressionScan`, to its fold's sums; only voxels of its own mask count."""
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
        occupied = [self.domain.any(dim=other).nonzero() for other in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in occupied)
        inside = self.domain[box]
        places = inside.flatten().nonzero()[:, 0]
        for start in range(0, len(sums), SMOOTH_CHUNK):
            maps = sums[start : start + SMOOTH_CHUNK]
            dense = torch.zeros(len(maps), inside.numel())
            dense.index_copy_(1, places, maps)
            torch.index_select(blur(dense.view(-1, *inside.shape), sigma).flatten(1), 1, places, out=maps)
        return sums

    def smoothed(self, sigma: float, exclude: int | None = None) -> tuple[Tensor, Tensor]:
        """Return gram `[P(P+1)/2, V]` and moment `[P, V]` of all folds but `exclude`, smoothed by `sigma` voxels."""
        kept = [fold for fold in range(self.folds) if fold != exclude]
        gram, moment = self.gram[kept[0]].clone(), self.moment[kept[0]].clone()
        for fold in kept[1:]:
            gram += self.gram[fold]
            moment += self.moment[fold]
        return self._smooth(gram, sigma), self._smooth(moment, sigma)

    def _full(self, packed: Tensor) -> Tensor:
        """Return the symmetric matrices `[V, P, P]` in float64 of packed upper triangles `[P(P+1)/2, V]`."""
        return packed.T.double()[:, self.unpacking].view(-1, self.model.count, self.model.count)

    def everywhere(self, gram: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients `[P]` of all voxels together, and the variance of each feature over them."""
        whole, right = self._full(gram.double().sum(dim=1, keepdim=True))[0], moment.double().sum(dim=1)
        average = whole / whole[0, 0]
        variance = (average.diagonal() - average[0] ** 2).clamp_min(INTERCEPT_VARIANCE)
        return torch.linalg.solve(average + GLOBAL_RIDGE * variance.diag(), right / whole[0, 0]), variance

    def solve(self, gram: Tensor, moment: Tensor, ridge: float, everywhere: tuple[Tensor, Tensor]) -> Tensor:
        """Return coefficients `[P, V]` of smoothed sums; `ridge` counts as so many scans that say "as everywhere".

        The penalty of each feature is its variance over the brain, so that it is isotropic in standardised features.
        Solved in float64 as the departure from the law of all voxels.
        """
        law, variance = everywhere
        penalty = ridge * variance
        parts = []
        for start in range(0, gram.shape[1], SOLVE_CHUNK):
            chunk = slice(start, start + SOLVE_CHUNK)
            full = self._full(gram[:, chunk])
            departure = moment[:, chunk].T.double() - full @ law
            full.diagonal(dim1=1, dim2=2).mul_(1 + ROUNDING).add_(penalty)
            factor = torch.linalg.cholesky(full)
            parts.append(law + torch.cholesky_solve(departure[..., None], factor)[..., 0])
        return torch.cat(parts).T.float()

    def held_out_error(self, coefficients: Tensor, fold: int, voxels: slice) -> float:
        """Return the summed squared error of coefficients `[P, v]` on a fold, from its sums alone."""
        gram = self._full(self.gram[fold][:, voxels])
        beta, moment = coefficients.T.double(), self.moment[fold][:, voxels].T.double()
        quadratic = (beta * (gram @ beta[..., None])[..., 0]).sum(dim=1)
        return float((self.energy[fold][voxels] - 2 * (beta * moment).sum(dim=1) + quadratic).sum())

    def choose(self, ridges: Sequence[float] = RIDGES, sigmas: Sequence[float] = SIGMAS) -> dict[str, float]:
        """Return the ridge and smoothing whose cross-fitted squared error is least, with that error's root mean."""
        voxels = slice(None, None, STRIDE)
        errors = dict.fromkeys(product(ridges, sigmas), 0.0)
        for sigma, fold in product(sigmas, range(self.folds)):
            gram, moment = self.smoothed(sigma, fold)
            everywhere = self.everywhere(gram, moment)
            for ridge in ridges:
                coefficients = self.solve(gram[:, voxels], moment[:, voxels], ridge, everywhere)
                errors[ridge, sigma] += self.held_out_error(coefficients, fold, voxels)
        ridge, sigma = min(errors, key=errors.__getitem__)
        seen = float(self.gram[:, 0, voxels].sum())
        return {"ridge": ridge, "sigma": sigma, "rmse": (max(errors[ridge, sigma], 0.0) / seen) ** 0.5}

    def coefficients(self, exclude: int | None, ridge: float, sigma: float) -> Tensor:
        """Return the coefficients `[P, D, H, W]` fitted without fold `exclude` (`None`: on all)."""
        dense = torch.zeros_like(self.model.coefficients)
        gram, moment = self.smoothed(sigma, exclude)
        dense[:, self.domain] = self.solve(gram, moment, ridge, self.everywhere(gram, moment))
        return dense


def fit_local_linear(
    scans: Iterable[RegressionScan],
    model: LocalLinear,
    *,
    ridges: Sequence[float] = RIDGES,
    sigmas: Sequence[float] = SIGMAS,
) -> tuple[LocalLinear, list[Tensor], dict[str, float]]:
    """Fit `model` in place; return it, cross-fitted predictions and the chosen ridge, sigma (voxels) and rmse.

    Args:
        scans: read three times (masks and side values; sums; predictions), so a sequence or a re-iterable.
        model: receives the coefficients fitted on all scans.
        ridges: strengths to choose from, in scans.
        sigmas: smoothings of the sums to choose from, in voxels.

    Returns:
        The predictions `[1, D, H, W]` are those of the law fitted without the scan's own fold: their residuals are as
        large as those of a new scan.

    Raises:
        DataError: no scan, or all in one fold.
    """
    domain = torch.zeros(model.shape, dtype=torch.bool)
    sides, folds = [], []
    for scan in scans:
        domain |= scan.mask[0].bool()
        sides.append(scan.side)
        folds.append(scan.fold)
    if len(set(folds)) < 2:
        raise DataError(f"{len(folds)} training scans in {len(set(folds))} folds; cross-fitting needs 2 folds or more")
    # An unknown value of a column counts as the column's mean; a column never known counts as 0.
    model.side_mean.copy_(torch.nan_to_num(torch.stack(sides).float().nanmean(dim=0), nan=0.0))

    fit = LocalLinearFit(model, domain, max(folds) + 1)
    for scan in scans:
        fit.add(*scan)
    chosen = fit.choose(ridges, sigmas)
    without = {fold: fit.coefficients(fold, chosen["ridge"], chosen["sigma"]) for fold in sorted(set(folds))}
    predictions = []
    for scan in scans:
        model.coefficients.copy_(without[scan.fold])
        predictions.append(model(scan.source[None], scan.side[None])[0])
    model.coefficients.copy_(fit.coefficients(None, chosen["ridge"], chosen["sigma"]))
    return model, predictions, chosen


def grouped_folds(labels: Sequence[str], count: int) -> list[int]:
    """Return a fold for each label such that equal labels (one person's scans) share it."""
    order = {label: index for index, label in enumerate(sorted(set(labels)))}
    return [order[label] % count for label in labels]
