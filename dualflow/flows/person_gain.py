"""PersonGain: one factor per person on a mean image, from whole-brain features of source and side information.

A mean that is local in space leaves errors that a whole brain shares. Their largest part is a factor on the image,
which whole-brain features predict where local ones cannot.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.flows.harmonise import LEVELS, quantiles
from dualflow.flows.local_linear_fit import warn_at_edge
from dualflow.flows.voxel_features import TISSUE_CENTRES, foreground, soft_tissue

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Candidate ridge strengths, relative to the mean squared norm of a person's features."""
POOL = 4
"""Edge of the blocks of the coarse tissue maps, in voxels."""
COMPONENTS = (4, 24)
"""Principal components of the quantiles and of the coarse tissue maps."""
PEOPLE_PER_COMPONENT = 8
MIN_SD = 1e-3
"""Smallest standard deviation by which a component is divided."""


class PersonGain(nn.Module):
    """A ridge regression of each person's gain, standardised principal components of the whole brain to one number.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        channels: channels of the source.
    """

    centre: Tensor
    slope: Tensor

    def __init__(self, shape: tuple[int, int, int], side_features: int, channels: int) -> None:
        super().__init__()
        blocks = [-(-size // POOL) for size in shape]
        tissue = channels * len(TISSUE_CENTRES) * blocks[0] * blocks[1] * blocks[2]
        self.sizes = (channels * len(LEVELS), tissue, side_features)
        self.register_buffer("centre", torch.zeros(sum(self.sizes)))
        self.register_buffer("slope", torch.zeros(sum(self.sizes)))

    def describe(self, source: Tensor, side: Tensor) -> Tensor:
        """Return the description of a person: quantiles, coarse tissue maps and complete side values, `[Q]`.

        Args:
            source: `[C, D, H, W]`.
            side: `[1, S]`.
        """
        tissue = soft_tissue(source[None].float()) * foreground(source[None])
        window = [min(POOL, size) for size in tissue.shape[2:]]
        coarse = F.avg_pool3d(tissue, window, ceil_mode=True, count_include_pad=False)
        return torch.cat([quantiles(source).flatten(), coarse.flatten(), side.flatten()])

    def forward(self, source: Tensor, side: Tensor) -> Tensor:
        """Return the factor of each person, `[N]`, from the source `[N, C, D, H, W]` and side values `[N, S]`."""
        rows = torch.stack([self.describe(*person) for person in zip(source, side[:, None], strict=True)])
        return 1 + (rows - self.centre) @ self.slope

    def fit(
        self, descriptions: Tensor, gains: Tensor, folds: Sequence[int], subjects: Sequence[Hashable]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Fit to descriptions `[N, Q]` and gains `[N]` of scans; return the gain of each from a fit without its fold.

        The ridge has the least error of these held-out gains. The fit is scaled by the regression of the gains on
        them, within 0..1, and is 0 unless they reduce the squared error by more than two standard errors over
        subjects, whose scans are not independent. Also returns facts of the fit.
        """
        descriptions, gains = descriptions.double(), gains.double()
        people = list(dict.fromkeys(subjects))
        centre, directions = descriptions.mean(dim=0), self._directions(descriptions, len(people))
        rows = (descriptions - centre) @ directions
        scale = rows.square().sum(dim=1).mean().clamp_min(1e-12)
        values, vectors = torch.linalg.eigh(rows @ rows.T / scale)
        values, power, fits = values.clamp_min(0), gains.square().mean().clamp_min(1e-12), {}
        for ridge in RIDGES:
            hat = (vectors * (values / (values + ridge))) @ vectors.T
            held_out = _held_out(hat, gains, torch.tensor(folds))
            fits[ridge] = float((gains - held_out).square().mean() / power), held_out
        ridge = min(fits, key=lambda one: fits[one][0])
        error, held_out = fits[ridge]
        weight = float((gains @ held_out / held_out.square().sum().clamp_min(1e-12)).clamp(0, 1))
        reduction = gains.square() - (gains - weight * held_out).square()
        person = torch.tensor([people.index(subject) for subject in subjects])
        totals = reduction.new_zeros(len(people)).index_add_(0, person, reduction)
        weight *= bool(totals.mean() > 2 * totals.std() / len(people) ** 0.5)
        dual = (vectors / (values + ridge)) @ (vectors.T @ gains) / scale
        self.centre.copy_(centre)
        self.slope.copy_(weight * directions @ (rows.T @ dual))
        if weight:
            warn_at_edge("the ridge of the person gain", ridge, RIDGES)
        return (weight * held_out).float(), {"gain_error": error, "gain_ridge": ridge, "gain_weight": weight}

    def _directions(self, descriptions: Tensor, people: int) -> Tensor:
        """Return standardised principal components of each part of the description, as columns `[Q, K]`.

        Their number is limited by that of the people, some of whom may have several scans.
        """
        parts = list[Tensor]()
        for part, limit in zip(
            torch.split(descriptions, list(self.sizes), dim=1), (*COMPONENTS, self.sizes[2]), strict=True
        ):
            centred = part - part.mean(dim=0)
            count = min(limit, max(people // PEOPLE_PER_COMPONENT, 1), part.shape[1])
            axes = torch.linalg.svd(centred, full_matrices=False).Vh[:count].T
            parts.append(axes / (centred @ axes).square().mean(dim=0).sqrt().clamp_min(MIN_SD))
        directions: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        return directions


def _held_out(hat: Tensor, values: Tensor, folds: Tensor) -> Tensor:
    """Return the predictions of a linear smoother `values -> hat values` fitted without the fold of each value.

    For a ridge regression, r_G = (I - H_GG)^-1 (y - H y)_G are the residuals of fold G from a fit without it.
    """
    residual, predictions = values - hat @ values, torch.empty_like(values)
    for fold in set(folds.tolist()):
        members = (folds == fold).nonzero()[:, 0]
        block = torch.eye(len(members), dtype=hat.dtype) - hat[members][:, members]
        predictions[members] = values[members] - torch.linalg.solve(block, residual[members])
    return predictions
