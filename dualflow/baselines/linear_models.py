"""Linear baselines in closed form: the mean image and voxelwise linear regressions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualflow.baselines.baseline import Baseline
from dualflow.errors import DataError
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.folds import balanced_folds
from dualflow.flows.local_linear import LocalLinear
from dualflow.flows.local_linear_fit import RIDGES, SIGMAS
from dualflow.flows.regression_scans import Pairs, RegressionScans, shown
from dualflow.flows.stacked_mean import StackedMean
from dualflow.flows.voxel_domain import extended
from dualflow.flows.voxel_features import VoxelFeatures


class MeanImage(Baseline):
    """The mean of the training targets, each voxel over the scans that show it.

    It continues a few voxels beyond all masks; further away it is 0.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns, which it ignores.
        source_channels: channels of the source, which it ignores.
    """

    is_conditional = False
    image: Tensor

    def __init__(self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1) -> None:
        super().__init__()
        self.register_buffer("image", torch.zeros(1, *shape))

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> None:
        """Average the targets.

        Raises:
            DataError: there are no pairs.
        """
        if len(pairs) == 0:
            raise DataError("no training pairs; check the split and the list of quarantined scans")
        total, count = torch.zeros_like(self.image), torch.zeros_like(self.image)
        for position in range(len(pairs)):
            pair = pairs[position]
            seen = shown(pair)
            total += pair["target"] * seen
            count += seen
        self.image.copy_(extended(total / count.clamp_min(1), count[0] > 0))

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the mean image for each sample of the batch."""
        return self.image.expand(len(source), -1, -1, -1, -1)


class LocalLinearBaseline(Baseline):
    """Local linear regression on tissue features: the `local_linear` mean of a flow, without the flow.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
        design: the features; by default TissueFeatures.
        ridges: candidate strengths, in scans.
        sigmas: candidate widths of the neighbourhood, in voxels; with 0 every voxel is fitted on its own.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        *,
        design: VoxelFeatures | None = None,
        ridges: Sequence[float] = RIDGES,
        sigmas: Sequence[float] = SIGMAS,
    ) -> None:
        super().__init__()
        self.ridges, self.sigmas = ridges, sigmas
        self.regression = LocalLinear(shape, side_features, source_channels, design=design)

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the regression; return its cross-fitted predictions."""
        scans = RegressionScans(pairs, default_folds(pairs) if folds is None else folds)
        _, images, _ = solve(scans, self.regression, ridges=self.ridges, sigmas=self.sigmas)
        return images

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the regression's prediction."""
        image: Tensor = self.regression(source, side)
        return image


class StackedBaseline(Baseline):
    """The `stacked` mean of a flow, without the flow.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1) -> None:
        super().__init__()
        self.mean = StackedMean(shape, side_features, source_channels)

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the mean; return its cross-fitted predictions."""
        scans = RegressionScans(pairs, default_folds(pairs) if folds is None else folds)
        return solve(scans, self.mean)[1]

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the mean's prediction."""
        image: Tensor = self.mean(source, side)
        return image


def default_folds(pairs: Pairs) -> list[int]:
    """Return folds in which every pair is a subject."""
    return balanced_folds([str(position) for position in range(len(pairs))])
