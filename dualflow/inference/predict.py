"""Predictions on the model grid: a point estimate, a standard deviation, and joint samples of a flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualflow.models.store import TrainedModel, load_model
from dualflow.training.device import device_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """A predicted volume on the model grid, in the target's normalised unit (SUVR for PET).

    Attributes:
        mean: point estimate `[D, H, W]`.
        std: standard deviation per voxel `[D, H, W]`; zero everywhere where it is unknown.
        samples: joint samples `[K, D, H, W]`; None for a model without a distribution.
        region_std: standard deviation of each region's mean `[R]`; None if samples determine it, or if it is unknown.
        sample_seconds: wall time per sample; None without samples.
    """

    mean: Floats
    std: Floats
    samples: Floats | None = None
    region_std: Floats | None = None
    sample_seconds: float | None = None


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
        latents: str | None = None,
    ) -> Prediction:
        """Predict one scan.

        Args:
            source: `[C, D, H, W]`.
            side: `[S]`, NaN where unknown.
            mask: brain `[1, D, H, W]`; outside it everything is zero.
            samples: number of samples of a flow.
            temperature: scale of the latent noise.
            seed: equal seeds give equal samples.
            latents: transform of sampled latents, a row of LATENT_TRANSFORMS; None takes the flow's default.
        """
        device = device_of(self.model)
        batch = source[None].to(device), side[None].to(device)
        inside = mask[0].cpu().numpy()
        point = np.where(inside, _volume(self.model.point_estimate(*batch)[0, 0]), np.float32(0))
        if self.flow is None:
            return self._with_constant_spread(point, inside)
        generator = torch.Generator().manual_seed(seed)
        start = perf_counter()
        drawn = _volume(self.flow.sample(*batch, samples, temperature, generator, latents)[:, 0, 0])
        seconds = (perf_counter() - start) / samples
        volumes = np.where(inside, drawn, np.float32(0))
        return Prediction(point, volumes.std(axis=0, ddof=1), volumes, sample_seconds=seconds)

    def _with_constant_spread(self, point: Floats, inside: NDArray[np.bool_]) -> Prediction:
        spread = self.card.constant_spread
        if spread is None:
            return Prediction(point, np.zeros_like(point))
        regions = np.full(spread.regions, spread.region, np.float32) if spread.regions else None
        return Prediction(point, np.where(inside, np.float32(spread.voxel), np.float32(0)), None, regions)


def load_predictor(folder: Path | str, device: str = "cpu") -> Predictor:
    """Load a trained model for prediction.

    Raises:
        CheckpointError: the folder holds no model, a broken one, or one of another version.
    """
    trained = load_model(Path(folder), device)
    return Predictor(trained.model, trained.card)


def _volume(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array
