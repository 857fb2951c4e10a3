"""Predictions on the model grid: a point estimate, a standard deviation, and joint samples.

Samples are streamed: the model draws a few at a time on its device, mean and variance are running sums, and only the
samples to keep go to CPU memory. Memory therefore does not depend on the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from dualflow.arrays import Bools, Doubles, Singles
from dualflow.errors import IntensityError
from dualflow.flows.interface import ConditionalSampler
from dualflow.imaging.regions import RegionMap
from dualflow.models.store import TrainedModel, load_model
from dualflow.training.device import device_of


@dataclass(frozen=True)
class Prediction:
    """A predicted volume on the model grid, in the target's normalised unit (SUVR for PET).

    Attributes:
        mean: point estimate `[D, H, W]`.
        std: standard deviation per voxel `[D, H, W]`; zero everywhere where it is unknown.
        samples: the first K joint samples `[K, D, H, W]`, as many as were to be kept; None for a model without a
            distribution.
        region_std: standard deviation of each region's mean `[R]`; None if samples determine it, or if it is unknown.
        sample_seconds: wall time per sample; None without samples.
        sample_mean: mean of all samples `[D, H, W]`; None without samples.
        region_samples: mean of each region in each of the S samples, `[S, R]`; None without samples or regions.
    """

    mean: Singles
    std: Singles
    samples: Singles | None = None
    region_std: Singles | None = None
    sample_seconds: float | None = None
    sample_mean: Singles | None = None
    region_samples: Doubles | None = None


class RunningMoments:
    """Mean and standard deviation of volumes that arrive one at a time, in float64 (Welford 1962).

    Args:
        like: a tensor with the volumes' size and device.
    """

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean = torch.zeros_like(like, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, volume: Tensor) -> None:
        """Include a volume."""
        self.count += 1
        deviation = volume - self.mean
        self.mean += deviation / self.count
        self.squares += deviation * (volume - self.mean)

    def std(self) -> Tensor:
        """Return the unbiased standard deviation."""
        return (self.squares / (self.count - 1)).sqrt()


class Predictor(TrainedModel):
    """A trained model that predicts one scan at a time."""

    @torch.no_grad()
    def predict(
        self,
        source: Tensor,
        side: Tensor,
        mask: Tensor,
        *,
        samples: int,
        temperature: float,
        seed: int,
        keep: int | None = None,
        regions: RegionMap | None = None,
    ) -> Prediction:
        """Predict one scan.

        Args:
            source: `[2C, D, H, W]`, the images and then the detail of each.
            side: `[S]`, NaN where unknown.
            mask: brain `[1, D, H, W]`; outside it everything is zero.
            samples: number of samples of a model with a distribution.
            temperature: scale of the latent noise.
            seed: equal seeds give equal samples, up to rounding on any device.
            keep: number of samples in the prediction, the first ones; None keeps all.
            regions: regions whose means in every sample are kept.

        Raises:
            IntensityError: the prediction has NaN or infinite voxels.
        """
        device = device_of(self.model)
        batch, inside = (source[None].to(device), side[None].to(device)), mask[0].to(device)
        point = _volume(self.model.point_estimate(*batch)[0, 0].where(inside, 0.0))
        if not isinstance(self.model, ConditionalSampler):
            return _finite(self._with_constant_spread(point, mask[0].cpu().numpy()))
        moments, count = RunningMoments(inside), samples if keep is None else min(keep, samples)
        kept = np.empty((count, *point.shape), np.float32)
        region_means = []
        start = perf_counter()
        for drawn in self.model.stream(*batch, samples, temperature, torch.Generator().manual_seed(seed)):
            for volume in drawn[:, 0, 0].where(inside, 0.0):
                if moments.count < count:
                    kept[moments.count] = _volume(volume)
                moments.add(volume)
                if regions is not None:
                    region_means.append(regions.means(_volume(volume), mask[0].cpu().numpy()))
        std, mean = _volume(moments.std()), _volume(moments.mean)
        seconds = (perf_counter() - start) / samples
        region_samples = np.stack(region_means) if region_means else None
        return _finite(Prediction(point, std, kept, None, seconds, mean, region_samples))

    def _with_constant_spread(self, point: Singles, inside: Bools) -> Prediction:
        spread = self.card.constant_spread
        if spread is None:
            return Prediction(point, np.zeros_like(point))
        regions = np.full(spread.regions, spread.region, np.float32) if spread.regions else None
        return Prediction(point, np.where(inside, np.float32(spread.voxel), np.float32(0)), None, regions)


def load_predictor(folder: Path | str, device: torch.device | str = "cpu") -> Predictor:
    """Load a trained model for prediction on a device.

    Raises:
        CheckpointError: the folder holds no model, a broken one, or one of another version.
    """
    trained = load_model(Path(folder), device)
    return Predictor(trained.model, trained.card)


def _finite(prediction: Prediction) -> Prediction:
    """The prediction, unless it is no image. The mean and spread of all samples stand for those that are not kept."""
    volumes = {
        "point estimate": prediction.mean,
        "spread": prediction.std,
        "mean of the samples": prediction.sample_mean,
    }
    for name, volume in volumes.items():
        if volume is not None and (invalid := int((~np.isfinite(volume)).sum())):
            raise IntensityError(
                f"the predicted {name} has {invalid} NaN or infinite voxels, expected finite values; check the scan's "
                "picture in qc.html and its side information, or train the model again"
            )
    return prediction


def _volume(tensor: Tensor) -> Singles:
    array: Singles = tensor.float().cpu().numpy()
    return array
