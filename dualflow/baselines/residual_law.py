"""ResidualLaw: a joint law of the errors of a conditional mean, in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.baselines.grid_kernel import GridKernel
from dualflow.baselines.region_law import RegionLaw
from dualflow.baselines.residuals import PRIOR_PEOPLE, Residual, spread_map
from dualflow.baselines.scale_fit import fit_scale
from dualflow.errors import DataError, ShapeError
from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.person_features import person_count, person_values
from dualflow.flows.rng import standard_noise
from dualflow.flows.side_information import known_side, side_values
from dualflow.flows.voxel_features import blur, without_detail
from dualflow.imaging.regions import MINIMUM_SHOWN

KERNEL_PEOPLE = 40
"""People whose errors determine the correlation between voxels; of more every n-th, so that at least these remain."""
ROUNDS = 4
"""Iterations by which the variance of every voxel is matched to the spread map."""
LEAST_SHARE = 0.05
"""Least variance of a voxel around its region mean, relative to the spread map's."""
LEAST_DEVIATION = 0.5
"""Least ratio of a voxel's D to the spread map, relative to the median ratio.

Beside small regions the iterations would leave a voxel no variance of its own, and the density would be sure of it.
"""
BLUR = 0.8
"""Width, in voxels, of the blur between the effects of neighbouring regions."""
CHUNK = 8


class ResidualLaw(nn.Module):
    """Law of the error of a person with source x and side information: region means, and voxels around them.

    M averages over the voxels of each region, and K spreads region means over the voxels such that M K = 1. With a
    draw n of a Gaussian field and a draw z of the RegionLaw, independent of each other,

        error = s_v(x) (n - K M n) + s_r(x) K u,    u_r = d_r z_r,

    so the region means are exactly `s_r(x) u`. d is the standard deviation per region. The scales of voxels and regions
    are a LogLinearScale each, or 1. K gives a voxel the value of its nearest region, blurred and proportional to the
    spread map: the root mean squared error of the training people, smoothed over space. The field has a standard
    deviation D per voxel and the correlation of a GridKernel. D is found by iteration, such that without scales the
    standard deviation of the error is the spread map; where D would almost vanish, it keeps a least share of the map.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
        regions: number of regions.
        person_scale: whether the scales depend on the person.
        components: largest number of components of the RegionLaw.
    """

    labels: Tensor
    nearest: Tensor
    spread: Tensor
    deviation: Tensor
    region_deviation: Tensor
    unmixing: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        *,
        regions: int = 1,
        person_scale: bool = False,
        components: int = 1,
    ) -> None:
        super().__init__()
        self.side_features, self.source_channels = side_features, source_channels
        self.kernel = GridKernel(shape)
        self.regions = RegionLaw(regions, 2 * side_features, components)
        features = person_count(side_features, source_channels)
        self.voxel_scale, self.region_scale = (LogLinearScale(features) if person_scale else None for _ in range(2))
        self.register_buffer("labels", torch.ones(shape, dtype=torch.int32))
        self.register_buffer("nearest", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("deviation", torch.ones(shape))
        self.register_buffer("region_deviation", torch.ones(regions))
        self.register_buffer("unmixing", torch.eye(regions))

    def set_regions(self, labels: Tensor) -> None:
        """Set the regions `[D, H, W]` before the fit: 0 is no region, r + 1 is region r.

        Raises:
            ShapeError: the labels are not on the grid, or exceed the number of regions.
        """
        if labels.shape != self.labels.shape or labels.max() > len(self.region_deviation):
            raise ShapeError(
                f"labels {tuple(labels.shape)} of {int(labels.max())} regions; expected {tuple(self.labels.shape)} and "
                f"at most {len(self.region_deviation)} regions"
            )
        self.labels.copy_(labels)

    def fit(self, residuals: Iterable[Residual]) -> None:
        """Fit the law to cross-fitted errors, which are as large as those of new people.

        Without `set_regions` the brain is one region. Voxels outside the masks of most people belong to no region.

        Args:
            residuals: of the training people, iterated several times.

        Raises:
            DataError: there are no residuals.
        """
        folds, people = [], []
        for residual in residuals:
            folds.append(residual.fold)
            people.append(residual.person)
        if not folds:
            raise DataError("no training pairs; check the split and the list of quarantined scans")
        masks = sum(residual.mask[0].float() for residual in residuals)
        assert isinstance(masks, Tensor)
        self.labels.copy_(torch.where(masks > len(folds) / 2, self.labels, 0))
        self.nearest.copy_(_nearest(self.labels))
        self.spread.copy_(spread_map(residuals))
        self.unmixing.copy_(self._unmixing())
        means = torch.stack([self.region_means(r.error[0] * r.mask[0], r.mask[0]) for r in residuals])
        features = torch.cat([self._person_values(r.source[None], r.side[None]) for r in residuals])
        known = torch.stack([self._known_regions(r) for r in residuals])
        region_scales = voxel_scales = torch.ones(len(folds))
        if self.region_scale is not None:
            squares = means.square() * known
            relative = squares / (squares.sum(dim=0) / known.sum(dim=0).clamp_min(1)).clamp_min(1e-12)
            energy = relative.sum(dim=1) / known.sum(dim=1).clamp_min(1)
            region_scales = fit_scale(self.region_scale, features, energy, folds)
        if self.voxel_scale is not None:
            within = ((error / self.spread)[r.mask[0]].square() for r, error in self._within(residuals, means))
            voxel_scales = fit_scale(
                self.voxel_scale, features, torch.stack([values.mean() for values in within]), folds
            )
        side = torch.cat([known_side(r.side[None], r.error, self.side_features) for r in residuals])
        self._fit_regions(means / region_scales[:, None], known, side, folds, people)
        self._fit_field(residuals, means, voxel_scales, (region_scales / voxel_scales).square().mean())

    def region_means(self, field: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the means `[..., R]` of fields `[..., D, H, W]` over the voxels of each region in the mask.

        A region without a voxel in the mask has the mean 0.
        """
        labels = self.labels if mask is None else torch.where(mask, self.labels, 0)
        voxels = labels.flatten().nonzero()[:, 0]
        region = labels.flatten()[voxels].long() - 1
        values = field.flatten(-3)[..., voxels]
        sums = values.new_zeros(*values.shape[:-1], len(self.region_deviation)).index_add_(-1, region, values)
        return sums / self._sizes(region).clamp_min(1)

    def sample(
        self, source: Tensor, side: Tensor | None = None, n: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n errors per source `[N, C, D, H, W]`, as `[n, N, 1, D, H, W]`."""
        values = known_side(side, source, self.side_features)
        voxel_scales, region_scales = self.scales(source, side)
        people = []
        for known, voxel_scale, region_scale in zip(values, voxel_scales, region_scales, strict=True):
            noise = voxel_scale * self.deviation * self.kernel.draw(n, generator)
            means = region_scale * self.region_deviation * self.regions.draw(n, known, generator)
            people.append(noise + self.interpolate(means - self.region_means(noise)))
        return torch.stack(people, dim=1)[:, :, None]

    def scales(self, source: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return each person's scale of voxels around their region means, and of region means, both `[N]`."""
        if self.voxel_scale is None or self.region_scale is None:
            return source.new_ones(len(source)), source.new_ones(len(source))
        features = self._person_values(source, side_values(side, source, self.side_features))
        return self.voxel_scale(features), self.region_scale(features)

    def interpolate(self, means: Tensor) -> Tensor:
        """Return the fields K u `[n, D, H, W]` with these region means u `[n, R]`."""
        return self._spread_out(means @ self.unmixing.T)

    def covariance_with_means(self) -> Tensor:
        """Return the covariance `[R, D, H, W]` of the field n with its region means M n."""
        sizes = self._sizes(self._region_of_voxels()).clamp_min(1)
        fields = []
        for unit in _chunks(torch.eye(len(sizes)).to(sizes)):
            weights = F.pad(unit / sizes, (1, 0))
            fields.append(self.deviation * self.kernel.apply(self.deviation * weights[:, self.labels.long()]))
        return torch.cat(fields)

    def _person_values(self, source: Tensor, side: Tensor) -> Tensor:
        """Return the features of people `[N, P]` from sources with or without detail and side values `[N, S]`."""
        return person_values(without_detail(source, self.source_channels), side)

    def _spread_out(self, values: Tensor) -> Tensor:
        """Return fields `[n, D, H, W]` that follow the values of regions `[n, R]`, blurred between regions."""
        return self.spread * blur(values[:, self.nearest.long()], BLUR)

    def _region_of_voxels(self) -> Tensor:
        return self.labels[self.labels > 0].long() - 1

    def _sizes(self, region: Tensor) -> Tensor:
        return torch.bincount(region, minlength=len(self.region_deviation)).to(self.region_deviation)

    def _within(self, residuals: Iterable[Residual], means: Tensor) -> Iterator[tuple[Residual, Tensor]]:
        """Yield each person and the error `[D, H, W]` around their region means `[N, R]`."""
        for residual, mean in zip(residuals, means, strict=True):
            yield residual, residual.error[0] - self.interpolate(mean[None])[0]

    def _known_regions(self, residual: Residual) -> Tensor:
        """Whether a target shows at least MINIMUM_SHOWN of each region in the mask, `[R]`."""
        if residual.unseen is None:
            return torch.ones(len(self.region_deviation), dtype=torch.bool)
        labels = (torch.where(part[0], self.labels, 0) for part in (residual.mask, residual.unseen))
        seen, unseen = (self._sizes(part[part > 0].long() - 1) for part in labels)
        return unseen <= (1 - MINIMUM_SHOWN) * (seen + unseen)

    def _fit_regions(
        self, means: Tensor, known: Tensor, side: Tensor, folds: Sequence[int], people: Sequence[str]
    ) -> None:
        """Fit standard deviation and law of the region means `[N, R]`, divided by the people's scales.

        The law takes unknown means as independent of the known ones: it has no error of 0 where nothing was measured.
        """
        squares = means.square() * known
        average = squares.sum() / known.sum().clamp_min(1)
        shrunk = (squares.sum(dim=0) + PRIOR_PEOPLE * average) / (known.sum(dim=0) + PRIOR_PEOPLE)
        self.region_deviation.copy_(shrunk.clamp_min(1e-12).sqrt())
        noise = standard_noise(tuple(means.shape), means, torch.Generator().manual_seed(0))
        self.regions.fit(torch.where(known, means / self.region_deviation, noise), side, folds, people)

    def _fit_field(self, residuals: Iterable[Residual], means: Tensor, scales: Tensor, share: Tensor) -> None:
        """Fit correlation and deviation of the field, such that the variances of both parts add up to the error's.

        Args:
            residuals: of the training people.
            means: `[N, R]`, their region means.
            scales: `[N]`, their scales of voxels.
            share: mean over the people of the squared scale of regions over that of voxels.
        """
        covariance = self.region_deviation[:, None] * self.regions.covariance() * self.region_deviation
        total = spread_map(residuals, scales).square()
        wanted = torch.maximum(total - share * self._interpolated_variance(covariance), LEAST_SHARE * total).sqrt()
        step = max(len(means) // KERNEL_PEOPLE, 1)
        sampled = islice(zip(self._within(residuals, means), scales, strict=True), 0, None, step)
        self.kernel.fit((error / (scale * wanted), residual.mask[0]) for (residual, error), scale in sampled)
        self.deviation.copy_(wanted)
        for _ in range(ROUNDS):
            least = LEAST_SHARE * self.deviation.square()
            self.deviation.mul_(wanted / torch.maximum(self._field_variance(), least).sqrt())
        ratio = self.deviation / total.sqrt()
        self.deviation.copy_(ratio.clamp_min(LEAST_DEVIATION * float(ratio[self.labels > 0].median())) * total.sqrt())

    def _unmixing(self) -> Tensor:
        """Return the matrix with which `interpolate` has the given region means."""
        columns = [self.region_means(self._spread_out(unit)) for unit in _chunks(torch.eye(len(self.region_deviation)))]
        mixing = torch.cat(columns).T.double()
        mixing.diagonal()[mixing.diagonal() == 0] = 1.0  # a region outside the masks
        inverse: Tensor = torch.linalg.inv(mixing)
        return inverse

    def _field_variance(self) -> Tensor:
        """Return the variance `[D, H, W]` of the field without its region means, n - K M n."""
        variance, shared = self.deviation.square(), self.covariance_with_means()
        for unit, part in zip(_chunks(torch.eye(len(shared))), _chunks(shared), strict=True):
            variance = variance - 2 * (part * self.interpolate(unit)).sum(dim=0)
        return variance + self._interpolated_variance(self.region_means(shared))

    def _interpolated_variance(self, covariance: Tensor) -> Tensor:
        """Return the variance `[D, H, W]` of K u for region means u of a covariance `[R, R]`."""
        values, vectors = torch.linalg.eigh((covariance + covariance.T).double() / 2)
        rows = (vectors * values.clamp_min(0).sqrt()).T.float()
        variance = torch.zeros_like(self.spread)
        for part in _chunks(rows):
            variance += self.interpolate(part).square().sum(dim=0)
        return variance


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    """Yield a few rows at a time; each becomes a volume."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _nearest(labels: Tensor) -> Tensor:
    """Return the index of the region nearest to each voxel `[D, H, W]`, from labels with 0 for no region."""
    from scipy.ndimage import distance_transform_edt

    known = labels.cpu().numpy()
    indices = distance_transform_edt(known == 0, return_distances=False, return_indices=True)
    return torch.from_numpy(known[tuple(indices)]).clamp_min(1) - 1
