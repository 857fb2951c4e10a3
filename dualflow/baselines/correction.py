"""Correction: the frame of all network baselines, a correction of the `stacked` mean in Haar bands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import StackedBaseline
from dualflow.errors import ShapeError
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.mean_models import coordinates
from dualflow.flows.objective import Objective
from dualflow.flows.regression_scans import Pairs
from dualflow.flows.side_information import known_side
from dualflow.flows.squeeze import HaarSqueeze
from dualflow.flows.voxel_features import foreground, without_detail

CORRECTED_MEAN = "stacked"
"""Closed-form mean that the networks correct."""
BANDS = 8
"""Haar bands of a volume, at half its resolution."""
UNIT = 4
"""Band volumes are padded to multiples of this size, so that networks can halve them twice."""


class Correction(Baseline):
    """A network that corrects the closed-form mean of the default flow, from Haar bands to Haar bands.

    The eight bands at half the resolution cost an eighth of the full grid, and the transform is orthonormal. The inputs
    are the bands of the source and of the closed-form prediction, the voxel position and the side values. The
    prediction is also the start: the correction is zero before training. In training the prediction is cross-fitted;
    otherwise the network would learn to correct smaller errors than those for new people. Each side value is a constant
    channel with a second channel that flags known values.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution.
    """

    widths: ClassVar[range] = range(6, 129, 2)
    """Widths from which `width_for` chooses."""
    learning_rate: ClassVar[float] = 1e-3
    """Default peak learning rate."""
    position: Tensor

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 16
    ) -> None:
        super().__init__()
        if any(size % 2 for size in shape):
            raise ShapeError(f"grid {tuple(shape)} cannot be halved; choose even sizes")
        self.side_features, self.source_channels, self.width = side_features, source_channels, width
        self.mean = StackedBaseline(shape, side_features, source_channels)
        self.haar = HaarSqueeze()
        half = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
        self.half_shape = half
        self.register_buffer("position", coordinates(half), persistent=False)
        self.padding = [extra for size in reversed(half) for extra in (0, -size % UNIT)]
        self.input_channels = BANDS * (source_channels + 1) + 3 + 2 * side_features

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the closed-form prediction; return its cross-fitted predictions for training."""
        return self.mean.fit(pairs, folds, solve)

    @abstractmethod
    def objective(self) -> Objective:
        """Return the objective of the gradient steps after `fit`."""

    def unit(self) -> Tensor | None:
        """Return the spread `[1, D, H, W]` by which the objective divides errors, if it does."""
        return None

    def first_stage(self) -> Objective | None:
        """Return the objective of an earlier stage of training, such as an autoencoder's; None without one."""
        return None

    def finish_first_stage(self, pairs: Pairs, images: Sequence[Tensor]) -> None:
        """Fit what the second stage needs of the first one, from training pairs and their cross-fitted images."""

    def start_and_inputs(
        self, source: Tensor, side: Tensor | None, mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the prediction to correct `[N, 1, D, H, W]`, and the network's inputs `[N, K, D/2, H/2, W/2]`, padded.

        `mean` replaces the closed-form prediction if given.
        """
        start = self.mean.point_estimate(source, side) if mean is None else mean
        bands = [self.haar(image)[0] for image in (without_detail(source, self.source_channels), start)]
        position = self.position.expand(len(source), -1, -1, -1, -1)
        values = known_side(side, source, self.side_features)[:, :, None, None, None].expand(-1, -1, *self.half_shape)
        return start, F.pad(torch.cat([*bands, position, values], dim=1), self.padding)

    def to_volume(self, bands: Tensor) -> Tensor:
        """Return the volumes `[N, C, D, H, W]` of padded bands `[N, 8C, D/2, H/2, W/2]`, in float32."""
        depth, height, width = self.half_shape
        return self.haar.inverse(bands[:, :, :depth, :height, :width].float())[0]

    def corrected(self, start: Tensor, correction: Tensor, source: Tensor) -> Tensor:
        """Add a correction inside the brain."""
        return start + correction.to(start.dtype) * foreground(source)


@cache
def _parameters(kind: type[Correction], side_features: int, source_channels: int, width: int) -> int:
    with torch.device("meta"):
        model = kind((8, 8, 8), side_features, source_channels, width=width)
    return sum(parameter.numel() for parameter in model.parameters())


def width_for(kind: type[Correction], parameters: int, side_features: int = 0, source_channels: int = 1) -> int:
    """Return the width at which a network baseline has the closest number of parameters, by ratio."""
    counts = dict[int, int]()
    for width in kind.widths:
        counts[width] = _parameters(kind, side_features, source_channels, width)
        if counts[width] >= parameters:
            break
    return min(counts, key=lambda width: abs(log(counts[width] / parameters)))
