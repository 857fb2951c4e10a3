"""Densities in closed form: a conditional mean and a joint law of its cross-fitted errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import LocalLinearBaseline, StackedBaseline, default_folds
from dualflow.baselines.residual_law import ResidualLaw
from dualflow.baselines.residual_likelihood import log_density
from dualflow.baselines.residuals import ResidualScans, spread_map
from dualflow.baselines.scale_fit import fit_voxel_scale
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.interface import SAMPLES_AT_ONCE, ConditionalSampler
from dualflow.flows.regression_scans import Pairs
from dualflow.flows.rng import seed_batches
from dualflow.flows.voxel_features import foreground
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


class SpreadDensity(ResidualDensity):
    """Local linear regression with a spread map, and errors that are correlated within and between regions.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
        regions: number of regions.
    """

    mean_baseline: ClassVar[type[Baseline]] = LocalLinearBaseline
    """The mean; its `fit` returns cross-fitted images."""
    person_scale: ClassVar[bool] = False
    components: ClassVar[int] = 1

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, regions: int = 1
    ) -> None:
        super().__init__()
        self.mean = self.mean_baseline(shape, side_features, source_channels)
        self.law = ResidualLaw(
            shape,
            side_features,
            source_channels,
            regions=regions,
            person_scale=self.person_scale,
            components=self.components,
        )

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the mean and the law of its cross-fitted errors; return the cross-fitted images."""
        folds = default_folds(pairs) if folds is None else folds
        images = self.mean.fit(pairs, folds, solve)
        assert images is not None
        self.fit_law(ResidualScans(pairs, images, folds))
        return images

    def fit_law(self, residuals: ResidualScans) -> None:
        """Fit the law of the errors to cross-fitted ones."""
        self.law.fit(residuals)

    def mean_and_factor(self, source: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Return the mean, and the factor 1."""
        return self.mean.point_estimate(source, side), 1.0


class PersonScaleDensity(SpreadDensity):
    """The `local_linear_spread` density, scaled per person by side information and tissue fractions."""

    person_scale = True


class MixtureDensity(PersonScaleDensity):
    """The `local_linear_person_scale` density with a mixture of up to three laws of the region means.

    The weights of the mixture depend on side information.
    """

    components = 3


class StackedMixtureDensity(MixtureDensity):
    """The same law around the `stacked` mean."""

    mean_baseline = StackedBaseline


class SourceScaleDensity(StackedMixtureDensity):
    """The `stacked_mixture` density, scaled in each voxel by how far the source lies from the usual one."""

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, regions: int = 1
    ) -> None:
        super().__init__(shape, side_features, source_channels, regions=regions)
        self.voxel_scale = VoxelScale(shape, source_channels)

    def fit_law(self, residuals: ResidualScans) -> None:
        """Fit the scale of voxels, then the law of the errors divided by it."""
        spread, rows = spread_map(residuals), list(residuals)
        squares = (((row.error[0] / spread).square(), row.mask[0]) for row in rows)
        folds = [row.fold for row in rows]
        # A person's scans are in one fold.
        sources = [row.source[: self.law.source_channels] for row in rows]
        scales, _ = fit_voxel_scale(self.voxel_scale, sources, squares, folds, folds)
        self.law.fit([row._replace(error=row.error / scale) for row, scale in zip(rows, scales, strict=True)])

    def mean_and_factor(self, source: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Return the mean, and the scale of the voxels."""
        images = source[:, : self.law.source_channels]
        return self.mean.point_estimate(source, side), self.voxel_scale(foreground(source), images)
