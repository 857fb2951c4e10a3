"""RegionalLaw: a cheap stand-in for the local regression, by which features are compared.

The sums of the normal equations are pooled over blocks of voxels, so one pass over a few scans and a few hundred small
solves give the cross-fitted error of any subset of the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualflow.flows.normal_equations import NormalEquations

EDGE = 4
"""Edge of a block, in voxels."""
RIDGES = (3.0, 10.0, 30.0, 100.0)
"""Candidate ridge strengths, in scans."""


class RegionalLaw:
    """Normal equations of one regression per block of voxels.

    Args:
        domain: `[D, H, W]` bool, the voxels that count.
        folds: number of folds.
        features: number of features.
    """

    def __init__(self, domain: Tensor, folds: int, features: int) -> None:
        position = domain.nonzero()
        blocks = (position // EDGE) @ torch.tensor([1 << 20, 1 << 10, 1])
        _, block, sizes = torch.unique(blocks, return_inverse=True, return_counts=True)
        order = block.argsort(stable=True)
        start = sizes.cumsum(0) - sizes
        # Row b lists the voxels of block b; voxel V, whose weight is 0, fills the row.
        self.table = torch.full((len(sizes), EDGE**3), len(position))
        self.table[block[order], torch.arange(len(order)) - start[block[order]]] = order
        self.domain, self.sizes = domain, sizes
        self.equations = NormalEquations.zeros(folds, features, len(sizes))
        self.upper = torch.triu_indices(features, features)

    def add(self, features: Tensor, target: Tensor, mask: Tensor, fold: int) -> None:
        """Add a scan: features `[P, D, H, W]`, target and bool mask `[D, H, W]`.

        A block weighs as much as one voxel.
        """
        weight = mask[self.domain].float()
        values = torch.stack([*features[:, self.domain], target[self.domain].float()]) * weight
        blocks = torch.cat([values, values.new_zeros(len(values), 1)], dim=1)[:, self.table].transpose(0, 1)
        sums = (blocks @ blocks.transpose(1, 2) / self.sizes[:, None, None]).permute(1, 2, 0)
        self.equations.gram[fold] += sums[self.upper[0], self.upper[1]]
        self.equations.moment[fold] += sums[:-1, -1]
        self.equations.energy[fold] += sums[-1, -1]

    def rmse(self, features: Sequence[int] | None = None) -> float:
        """Return the least cross-fitted root mean squared error over the ridges, with the features at these positions.

        Every fold is predicted from the sums of the others; None takes all features.
        """
        equations = self.equations if features is None else self.equations.select(torch.tensor(sorted(features)))
        errors = torch.zeros(len(RIDGES), dtype=torch.float64)
        for fold in range(equations.folds):
            sums = equations.without(fold)
            coefficients, variance = equations.global_fit(*sums)
            solved = equations.solve(*sums, RIDGES, coefficients[:, None], variance)
            errors += torch.tensor([equations.held_out_error(one, fold) for one in solved], dtype=torch.float64)
        return equations.rmse(float(errors.min()))
