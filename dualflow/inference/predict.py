"""From sources on the model grid to predictions: a point estimate, a spread, and joint samples where there are any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualflow.baselines import BASELINES
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import CheckpointError
from dualflow.flows.model import DualFlow
from dualflow.flows.spec import FlowSpec
from dualflow.training.checkpoint import load_card, load_weights
from dualflow.training.device import device_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """A predicted volume on the model grid, in the target's normalised unit (SUVR for PET).

    Attributes:
        mean: point estimate `[D, H, W]`.
        std: standard deviation per voxel `[D, H, W]`; zero everywhere where none is known.
        samples: joint samples `[K, D, H, W]`; None for a model that has no joint distribution.
        region_std: standard deviation of each region's mean `[R]`; None where samples say it, or none is known.
        sample_seconds: wall time per sample, of all samples drawn together; None where there are none.
    """

    mean: Floats
    std: Floats
    samples: Floats | None = None
    region_std: Floats | None = None
    sample_seconds: float | None = None


@dataclass(frozen=True)
class Predictor:
    """A trained model with its card, ready to predict.

    Attributes:
        model: a flow or a baseline.
        card: what `model.json` says: kind, sizes, side encoder, preprocessing, constant spread.
    """

    model: nn.Module
    card: dict[str, Any]

    @property
    def side(self) -> SideEncoder:
        """How side columns become the model's numbers."""
        return SideEncoder.from_dict(self.card["side"])

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return device_of(self.model)

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
            samples: how many samples of a flow.
            temperature: scale of the latent noise.
            seed: the same seed gives the same samples.
            latents: what is done to drawn latents, a row of LATENT_TRANSFORMS; None for the flow's own choice.
        """
        batch = source[None].to(self.device), side[None].to(self.device)
        inside = mask[0].cpu().numpy()
        point = np.where(inside, _volume(self.model.point_estimate(*batch)[0, 0]), np.float32(0))  # type: ignore[operator]
        if not isinstance(self.model, DualFlow):
            spread = self.card.get("constant_spread")
            if spread is None:
                return Prediction(point, np.zeros_like(point))
            regions = np.full(spread.get("regions", 0), spread["region"], np.float32) if spread.get("regions") else None
            return Prediction(point, np.where(inside, np.float32(spread["voxel"]), np.float32(0)), None, regions)
        generator = torch.Generator().manual_seed(seed)
        begun = perf_counter()
        drawn = _volume(self.model.sample(*batch, samples, temperature, generator, latents)[:, 0, 0])
        seconds = (perf_counter() - begun) / samples
        volumes = np.where(inside, drawn, np.float32(0))
        return Prediction(point, volumes.std(axis=0, ddof=1), volumes, sample_seconds=seconds)


def load_predictor(folder: Path, device: str = "cpu") -> Predictor:
    """Load a trained model.

    Raises:
        CheckpointError: the folder holds no model, a broken one, or one of an unknown kind.
    """
    card = load_card(folder)
    weights = load_weights(folder)
    try:
        model = build_model(card)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: card and weights do not fit this version ({first}); train again") from error
    return Predictor(model.to(device).eval(), card)


def build_model(card: dict[str, Any]) -> nn.Module:
    """Build the untrained model that a card describes.

    Raises:
        CheckpointError: the card names an unknown kind.
    """
    shape = tuple(card["shape"])
    side_features = len(SideEncoder.from_dict(card["side"]).names)
    channels = 1 + len(extra_sources(card))
    if card["kind"] == "flow":
        spec = FlowSpec.from_dict(card["spec"])
        return DualFlow(spec, shape=shape, side_features=side_features, source_channels=channels)
    if card["kind"] in BASELINES:
        model: nn.Module = BASELINES[card["kind"]](shape, side_features, channels, **card["options"])
        return model
    raise CheckpointError(f"model kind '{card['kind']}' is unknown; choose from: flow, {', '.join(BASELINES)}")


def extra_sources(card: dict[str, Any]) -> tuple[str, ...]:
    """Modalities that the model sees beside the main source; cards of older versions do not know of any."""
    return tuple(card["study"].get("extra_sources", ()))


def _volume(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array
