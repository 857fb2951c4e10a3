"""Normal equations of many regressions with the same features, one per site (a voxel, or a block of voxels).

At site v, y = beta_v . f. The sums A_v = sum f f^T, b_v = sum f y and sum y^2 over scans are kept per fold, so a fit
without a fold, its error on that fold, and a fit on fewer features need no further pass over the scans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INTERCEPT_VARIANCE = 1e-3
"""Floor of a feature's variance. It makes the penalty of the intercept small, so local levels are learnt first."""
GLOBAL_RIDGE = 1e-4
ROUNDING = 1e-6
"""Share of each diagonal added before a solve, so that float32 rounding does not make a singular matrix indefinite."""
SOLVE_CHUNK = 2048


class NormalEquations:
    """Sums of the normal equations, `[folds, P(P+1)/2, V]`, `[folds, P, V]` and `[folds, V]`, and their solutions.

    Args:
        gram: packed upper triangles of A, row by row.
        moment: b.
        energy: sums of squared targets.
    """

    def __init__(self, gram: Tensor, moment: Tensor, energy: Tensor) -> None:
        self.gram, self.moment, self.energy = gram, moment, energy
        self.folds, self.count = moment.shape[:2]
        self.unpacking = packed_index(self.count).flatten()

    @classmethod
    def zeros(cls, folds: int, features: int, sites: int) -> NormalEquations:
        """Return empty sums."""
        return cls(
            torch.zeros(folds, features * (features + 1) // 2, sites),
            torch.zeros(folds, features, sites),
            torch.zeros(folds, sites),
        )

    def add(self, features: Tensor, values: Tensor, weight: Tensor, fold: int) -> None:
        """Add a scan with one observation per site.

        Args:
            features: `[P, V]`.
            values: targets `[V]`.
            weight: `[V]`, 1 inside the scan's mask and 0 outside.
            fold: fold of the scan.
        """
        values = values * weight
        self.moment[fold].addcmul_(features, values)
        self.energy[fold].addcmul_(values, values)
        weighted, start = features * weight, 0
        for index in range(len(features)):
            length = len(features) - index
            self.gram[fold, start : start + length].addcmul_(weighted[index:], features[index])
            start += length

    def select(self, features: Tensor) -> NormalEquations:
        """Return the sums of a subset of the features, by their positions `[K]` in ascending order."""
        table = packed_index(self.count)[features][:, features]
        row, column = torch.triu_indices(len(features), len(features))
        return NormalEquations(self.gram[:, table[row, column]], self.moment[:, features], self.energy)

    def without(self, exclude: int | None = None) -> tuple[Tensor, Tensor]:
        """Return gram `[P(P+1)/2, V]` and moment `[P, V]`, summed over all folds but `exclude`."""
        folds = [fold for fold in range(self.folds) if fold != exclude]
        gram, moment = self.gram[folds[0]].clone(), self.moment[folds[0]].clone()
        for fold in folds[1:]:
            gram += self.gram[fold]
            moment += self.moment[fold]
        return gram, moment

    def _unpack(self, packed: Tensor) -> Tensor:
        """Return the symmetric matrices `[V, P, P]` in float64 of packed upper triangles `[P(P+1)/2, V]`."""
        # Rows are gathered before the transposition, because gathering columns takes several times as long.
        unpacked = packed.index_select(0, self.unpacking).T.double().contiguous()
        return unpacked.view(-1, self.count, self.count)

    def global_fit(self, gram: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients `[P]` fitted to all sites, and the variance `[P]` of each feature over them."""
        total, right = self._unpack(gram.double().sum(dim=1, keepdim=True))[0], moment.double().sum(dim=1)
        average = total / total[0, 0]
        variance = (average.diagonal() - average[0] ** 2).clamp_min(INTERCEPT_VARIANCE)
        return torch.linalg.solve(average + GLOBAL_RIDGE * variance.diag(), right / total[0, 0]), variance

    def precision(self, gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
        """Return the matrix of the ridge regression `[P, P]`, averaged over the sites."""
        variance = self.global_fit(gram, moment)[1]
        return self._unpack(gram.double().mean(dim=1, keepdim=True))[0] + ridge * variance.diag()

    def solve(
        self, gram: Tensor, moment: Tensor, ridges: Sequence[float], prior: Tensor, variance: Tensor
    ) -> list[Tensor]:
        """Return the coefficients `[P, V]` of each ridge, shrunk towards the coefficients `prior`.

        The ridge has the weight of this many scans that follow `prior`. The penalty of each feature is its variance
        over the brain, so it is isotropic in standardised features. The solve yields the difference from `prior`, in
        float64.

        Args:
            gram: `[P(P+1)/2, V]`.
            moment: `[P, V]`.
            ridges: strengths of the penalty, in scans.
            prior: `[P, V]`, or `[P, 1]` for all sites.
            variance: of each feature `[P]`, from `global_fit`.
        """
        prior = prior.expand(-1, gram.shape[1])
        parts: list[list[Tensor]] = [[] for _ in ridges]
        for first in range(0, gram.shape[1], SOLVE_CHUNK):
            sites = slice(first, first + SOLVE_CHUNK)
            matrices, start = self._unpack(gram[:, sites]), prior[:, sites].T.double()
            residual = moment[:, sites].T.double() - (matrices @ start[..., None])[..., 0]
            matrices.diagonal(dim1=1, dim2=2).mul_(1 + ROUNDING)
            for ridge, part in zip(ridges, parts, strict=True):
                penalised = matrices.clone()
                penalised.diagonal(dim1=1, dim2=2).add_(ridge * variance)
                cholesky = torch.linalg.cholesky(penalised)
                part.append(start + torch.cholesky_solve(residual[..., None], cholesky)[..., 0])
        return [torch.cat(part).T.float() for part in parts]

    def held_out_error(self, coefficients: Tensor, fold: int, sites: Tensor | None = None) -> float:
        """Return the summed squared error of coefficients `[P, v]` on a fold, from the fold's sums at `sites` `[v]`."""
        parts = self.gram[fold], self.moment[fold], self.energy[fold]
        gram, moment, energy = parts if sites is None else (sums.index_select(-1, sites) for sums in parts)
        beta = coefficients.T.double()
        quadratic = (beta * (self._unpack(gram) @ beta[..., None])[..., 0]).sum(dim=1)
        return float((energy - 2 * (beta * moment.T.double()).sum(dim=1) + quadratic).sum())

    def rmse(self, error: float, sites: Tensor | None = None) -> float:
        """Return the root mean squared error of a summed squared error over the sites; feature 0 is constant."""
        counts = self.gram[:, 0] if sites is None else self.gram[:, 0].index_select(-1, sites)
        return float((max(error, 0.0) / float(counts.sum())) ** 0.5)


def packed_index(count: int) -> Tensor:
    """Return the position of each entry of a symmetric matrix `[P, P]` in its packed upper triangle."""
    row, column = torch.triu_indices(count, count)
    index = torch.zeros(count, count, dtype=torch.long)
    index[row, column] = index[column, row] = torch.arange(len(row))
    return index
