"""Objective, the interface of every training loss, its Batch, and ImageObjective, the masked L1 of an image model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.flows.rng import EVALUATION_SEED


class Batch(NamedTuple):
    """The tensors of a training step.

    Attributes:
        target: `[N, C, D, H, W]`, in its unit (SUVR).
        source: `[N, C or 2C, D, H, W]`.
        side: `[N, S]`, NaN where unknown; None if all is.
        mask: `[N, C, D, H, W]`, bool; without a mask every voxel counts.
        mean: mean image in place of the mean model's, `[N, C, D, H, W]`; cross-fitted ones leave residuals as large as
            those of new subjects.
        spread: unit of the residual in place of the spread map's, `[N, 1, D, H, W]`; that of a training subject is
            relative to other people's scans.
    """

    target: Tensor
    source: Tensor
    side: Tensor | None = None
    mask: Tensor | None = None
    mean: Tensor | None = None
    spread: Tensor | None = None

    def spread_or(self, spread_map: Tensor, inside: Tensor) -> Tensor:
        """Return the spread of the scans, 1 outside a mask where augmentation may have left none, or a model's map."""
        return spread_map if self.spread is None else torch.where(inside, self.spread, 1.0)


class Objective(nn.Module, ABC):
    """A loss together with its model, as the training loop uses it.

    Subclasses hold the trained model as a submodule. `forward` is the training call, so that DistributedDataParallel
    can wrap the objective.
    """

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every step gives every trained parameter a gradient."""
        return False

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its named terms, each a mean over the batch."""

    @abstractmethod
    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the model's point estimate `[N, C, D, H, W]`."""

    def sample(self, source: Tensor, side: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Draw one target per source, `[N, C, D, H, W]`; None for a model without a distribution."""
        return None

    def noise_generator(self) -> torch.Generator | None:
        """Return a generator with a fixed seed in evaluation, so that validations are comparable; None in training."""
        return None if self.training else torch.Generator().manual_seed(EVALUATION_SEED)

    def set_progress(self, share: float) -> None:
        """Set the share of the training that is done, 0 to 1, for scheduled parts of the objective."""

    def selection_score(self, terms: Mapping[str, float]) -> float:
        """Return the number by which validation selects the weights; lower is better."""
        return terms["loss"]

    def diagnostics(self, batch: Batch, *, round_trip: bool) -> dict[str, float]:
        """Return further numbers of a validation batch; `round_trip` asks for the costly invertibility check."""
        return {}


class ImageObjective(Objective):
    """Mean absolute error of an image inside the mask, in the target's unit.

    Args:
        model: its forward(source, side, mean) returns the image `[N, 1, D, H, W]`; `mean` may be None.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `l1`, which are the same number."""
        error = masked_l1(self.model(batch.source, batch.side, batch.mean), batch.target, batch.mask)
        return {"loss": error, "l1": error.detach()}

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the predicted target `[N, 1, D, H, W]`."""
        image: Tensor = self.model(source, side, None)
        return image


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean absolute error over the mask's voxels, in the target's unit; over all without a mask."""
    inside = torch.ones_like(target) if mask is None else mask.to(target.dtype)
    return mean_over_scans((prediction - target).abs(), inside)


def mean_over_scans(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over scans of each scan's weighted mean; one without weight counts as 0.

    So the loss does not depend on how processes share a batch, which a mean over its voxels would.

    Args:
        values: `[N, C, D, H, W]`.
        weights: `[N, C, D, H, W]`, or of one channel for all.
    """
    weights = weights.expand_as(values)
    total = weights.flatten(1).sum(1)
    return ((values * weights).flatten(1).sum(1) / total.clamp_min(torch.finfo(total.dtype).tiny)).mean()
