"""ResidualSampler: the frame of the generative networks, which draw standardised errors of a closed-form prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.baselines.correction import BANDS, Correction
from dualflow.baselines.linear_models import default_folds
from dualflow.baselines.residuals import ResidualScans, spread_map
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.interface import SAMPLES_AT_ONCE, ConditionalSampler
from dualflow.flows.objective import Batch, Objective
from dualflow.flows.regression_scans import Pairs
from dualflow.flows.rng import EVALUATION_SEED, seed_batches
from dualflow.flows.voxel_features import foreground

LIMIT = 6.0
"""Largest absolute error of a voxel, in standard deviations of the training errors."""


class NetworkInputs(NamedTuple):
    """What a generative network is given.

    Attributes:
        inputs: `[N, K, D/2, H/2, W/2]`, padded.
        inside: 1 in blocks that touch the brain, else 0, `[N, 1, D/2, H/2, W/2]`.
    """

    inputs: Tensor
    inside: Tensor

    def repeat(self, count: int) -> NetworkInputs:
        """Return the same for `count` draws of each person, one draw of all after the other."""
        return NetworkInputs(*(part.repeat(count, 1, 1, 1, 1) for part in self))


class ResidualSampler(Correction, ConditionalSampler):
    """A generative network of the error of a closed-form prediction, in standardised Haar bands.

        x = mu + s * haar^-1(b * e)

    mu is the closed-form prediction, s the root mean squared cross-fitted error of each voxel, smoothed over space, and
    b the standard deviation of each band. The network models e, whose values have mean 0 and variance 1 over the
    training people, in blocks that touch the brain.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution.
    """

    widths = range(8, 129, 8)
    spread: Tensor
    band_scale: Tensor

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 8
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("band_scale", torch.ones(BANDS, 1, 1, 1))

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the closed-form prediction and the size of its cross-fitted errors; return the cross-fitted images."""
        folds = default_folds(pairs) if folds is None else folds
        images = super().fit(pairs, folds, solve)
        scans = ResidualScans(pairs, images, folds)
        self.spread.copy_(spread_map(scans))
        self.band_scale.fill_(1.0)
        squares, blocks = torch.zeros(BANDS), torch.zeros(())
        for residual in scans:
            inside = _blocks(residual.mask[None])
            squares += self.haar((residual.error / self.spread)[None])[0].square().sum(dim=(0, 2, 3, 4))
            blocks += inside.sum()
        self.band_scale.copy_((squares / blocks.clamp_min(1)).clamp_min(1e-12).sqrt()[:, None, None, None])
        return images

    def unit(self) -> Tensor:
        """Return the spread map of the errors."""
        return self.spread[None]

    def given(self, source: Tensor, side: Tensor | None, mean: Tensor | None = None) -> tuple[Tensor, NetworkInputs]:
        """Return the closed-form prediction, or `mean` if given, and the inputs of the network."""
        start, inputs = self.start_and_inputs(source, side, mean)
        return start, NetworkInputs(inputs, F.pad(_blocks(foreground(source)), self.padding))

    def standardised(self, error: Tensor, spread: Tensor | None = None) -> Tensor:
        """Return the padded bands e `[N, 8, D/2, H/2, W/2]` of errors `[N, 1, D, H, W]`, 0 outside the brain.

        `spread` `[N, 1, D, H, W]` replaces the map, as for scans that augmentation has moved.
        """
        bands = self.haar(error / (self.spread if spread is None else spread))[0]
        return F.pad(bands / self.band_scale, self.padding)

    def restored(self, bands: Tensor, start: Tensor, source: Tensor) -> Tensor:
        """Return the image of bands e, with errors of at most LIMIT standard deviations."""
        error = self.to_volume(bands.float() * self.band_scale).clamp(-LIMIT, LIMIT) * self.spread
        return self.corrected(start, error, source)

    @abstractmethod
    def expect(self, given: NetworkInputs, generator: torch.Generator) -> Tensor:
        """Return the network's estimate of the mean of e."""

    @abstractmethod
    def draw(self, given: NetworkInputs, temperature: float, generator: torch.Generator) -> Tensor:
        """Draw one e for each row; the temperature scales the noise."""

    @torch.no_grad()
    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return an estimate of the distribution's mean."""
        start, given = self.given(source, side)
        return self.restored(self.expect(given, torch.Generator().manual_seed(EVALUATION_SEED)), start, source)

    @torch.no_grad()
    def stream(
        self,
        source: Tensor,
        side: Tensor | None = None,
        n: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield n targets per source a few at a time, `[k, N, 1, D, H, W]`; the temperature scales the noise."""
        start, given = self.given(source, side)
        for generators in seed_batches(n, SAMPLES_AT_ONCE, generator):
            draws = len(generators.samples)
            bands = self.draw(given.repeat(draws), temperature, generators)
            count = (draws, 1, 1, 1, 1)
            images = self.restored(bands, start.repeat(count), source.repeat(count))
            yield images.reshape(draws, *start.shape)


class ResidualObjective(Objective):
    """The base of the losses of e: it prepares the batch, and draws the same noise in every validation.

    Args:
        model: trained in place.
    """

    def __init__(self, model: ResidualSampler) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.progress = 1.0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its terms, means over voxels inside the brain."""
        model = self.sampler
        start, given = model.given(batch.source, batch.side, batch.mean)
        brain = foreground(batch.source)
        inside = brain if batch.mask is None else batch.mask & brain
        error = torch.where(inside, batch.target - start, 0.0)
        bands = model.standardised(error, batch.spread_or(model.spread, inside))
        return self.terms(bands, given, self.noise_generator())

    @property
    def sampler(self) -> ResidualSampler:
        """The model."""
        assert isinstance(self.model, ResidualSampler)
        return self.model

    @abstractmethod
    def terms(self, bands: Tensor, given: NetworkInputs, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return `loss` and its terms for the bands e of a batch; without a generator in training."""

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the model's point estimate `[N, 1, D, H, W]`."""
        return self.sampler.point_estimate(source, side)

    def sample(self, source: Tensor, side: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Draw one target per source, `[N, 1, D, H, W]`."""
        return self.sampler.sample(source, side, generator=generator)[0]

    def set_progress(self, share: float) -> None:
        """Set the share of the training that is done, 0 to 1."""
        self.progress = share


def per_voxel(totals: Tensor, inside: Tensor) -> Tensor:
    """Return the mean over scans of their sum of `totals`, on any grid, per voxel of the blocks inside."""
    return (totals.flatten(1).sum(1) / (inside.flatten(1).sum(1) * BANDS).clamp_min(1)).mean()


def _blocks(mask: Tensor) -> Tensor:
    """Return 1 in blocks of 2x2x2 voxels that touch a mask `[N, 1, D, H, W]`, else 0."""
    return F.max_pool3d(mask.float(), 2)
