"""Densities in closed form: a conditional mean and a joint law of its cross-fitted errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import LocalLinearBaseline, default_folds
from dualflow.baselines.residual_law import ResidualLaw
from dualflow.baselines.residual_likelihood import log_density
from dualflow.baselines.residuals import Residual, ResidualScans, spread_map
from dualflow.baselines.scale_fit import fit_voxel_scale
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.interface import SAMPLES_AT_ONCE, ConditionalSampler
from dualflow.flows.regression_scans import Pairs
from dualflow.flows.rng import seed_batches
from dualflow.flows.voxel_features import foreground, without_detail
from dualflow.flows.voxel_scale import VoxelScale


class ResidualDensity(Baseline, ConditionalSampler):
    """A baseline whose errors have a ResidualLaw, `law`; its constructor takes the number of `regions` too."""

    law: ResidualLaw

    def set_regions(self, labels: Tensor) -> None:
        """Set the regions `[D, H, W]` before the fit: 0 is no region, r + 1 is region r.

        Raises:
            ShapeError: the labels are not on the grid, or exceed the number of regions.
        """
        self.law.set_regions(labels)

    @abstractmethod
    def mean_and_factor(self, source: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Return the point estimate `[N, 1, D, H, W]`, and the factor by which the law's errors are multiplied."""

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the mean of the distribution."""
        return self.mean_and_factor(source, side)[0]

    def log_prob(self, target: Tensor, mask: Tensor, source: Tensor, side: Tensor | None = None) -> float:
        """Return the log-density in nats of the V voxels of a target in the mask, both `[1, 1, D, H, W]`.

        It takes V^3 / 3 operations and a matrix of V^2 numbers; NaN if rounding makes voxels dependent.
        """
        mean, factor = self.mean_and_factor(source, side)
        inside = mask[0, 0]
        if not isinstance(factor, Tensor):
            factor = torch.full_like(mean, factor)
        density = log_density(self.law, ((target - mean) / factor)[0, 0], inside, source, side)
        return density - float(factor[0, 0][inside].double().log().sum())

    @torch.no_grad()
    def stream(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield n targets per source a few at a time, `[k, N, 1, D, H, W]`; the temperature multiplies the error."""
        mean, factor = self.mean_and_factor(source, side)
        for generators in seed_batches(n, SAMPLES_AT_ONCE, generator):
            errors = self.law.sample(source, side, len(generators.samples), generators)
            yield mean + temperature * factor * errors * foreground(source)


class ClosedFormDensity(ResidualDensity):
    """A mean in closed form with a spread map, and errors that are correlated within and between regions.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
        regions: number of regions.
        mean: the mean; its `fit` returns cross-fitted images.
        person_scale: whether side information and tissue fractions scale the errors of a person.
        components: largest number of laws in the mixture of the region means, whose weights depend on side information.
        voxel_scale: whether the errors are scaled in each voxel by how far the source lies from the usual one.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        *,
        regions: int = 1,
        mean: type[Baseline] = LocalLinearBaseline,
        person_scale: bool = False,
        components: int = 1,
        voxel_scale: bool = False,
    ) -> None:
        super().__init__()
        self.mean = mean(shape, side_features, source_channels)
        self.law = ResidualLaw(
            shape, side_features, source_channels, regions=regions, person_scale=person_scale, components=components
        )
        self.voxel_scale = VoxelScale(shape, source_channels) if voxel_scale else None

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the mean and the law of its cross-fitted errors; return the cross-fitted images."""
        folds = default_folds(pairs) if folds is None else folds
        images = self.mean.fit(pairs, folds, solve)
        assert images is not None
        residuals = ResidualScans(pairs, images, folds)
        self.law.fit(residuals if self.voxel_scale is None else self._fit_voxel_scale(self.voxel_scale, residuals))
        return images

    def mean_and_factor(self, source: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Return the mean, and the scale of the voxels or 1."""
        mean = self.mean.point_estimate(source, side)
        if self.voxel_scale is None:
            return mean, 1.0
        return mean, self.voxel_scale(foreground(source), without_detail(source, self.law.source_channels))

    def _fit_voxel_scale(self, scale: VoxelScale, residuals: ResidualScans) -> list[Residual]:
        """Fit the scale of voxels; return the errors divided by it."""
        spread, rows = spread_map(residuals), list(residuals)
        squares = (((row.error[0] / spread).square(), row.mask[0]) for row in rows)
        folds = [row.fold for row in rows]
        # A person's scans are in one fold.
        sources = [without_detail(row.source, self.law.source_channels) for row in rows]
        scales, _ = fit_voxel_scale(scale, sources, squares, folds, folds)
        return [row._replace(error=row.error / scale) for row, scale in zip(rows, scales, strict=True)]
