"""U-Nets that correct the closed-form mean, with and without a map of its errors' size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.baselines.correction import BANDS, Correction
from dualflow.baselines.linear_models import default_folds
from dualflow.baselines.residual_density import ResidualDensity
from dualflow.baselines.residual_law import ResidualLaw
from dualflow.baselines.residuals import ResidualScans
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.objective import Batch, ImageObjective, Objective, masked_l1, mean_over_scans
from dualflow.flows.regression_scans import Pairs

STRIDES = (1, 2, 2)
GROUPS = 2
LOG_SCALE_BOUND = 1.5
"""Largest absolute log of the factor on the spread map."""
BETA = 0.5
"""Power of the variance that weights the likelihood of a voxel (Seitzer et al. 2022, beta-NLL)."""


class UNet(Correction):
    """nnU-Net's network (Isensee et al. 2021), from all Haar bands to the bands of the correction.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
    """

    maps: ClassVar[int] = 1
    """Volumes that the network returns."""

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 16
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        self.network = unet_network(self.input_channels, BANDS * self.maps, width)

    def objective(self) -> Objective:
        """Return the mean absolute error inside the mask."""
        return ImageObjective(self)

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the corrected prediction."""
        return self(source, side)  # type: ignore[no-any-return]

    def forward(self, source: Tensor, side: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
        """Return the corrected prediction; `mean` replaces the closed form's if given."""
        return self._correct(source, side, mean)[0]

    def _correct(self, source: Tensor, side: Tensor | None, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the corrected prediction and the further maps of the network, `[N, maps - 1, D, H, W]`."""
        start, inputs = self.start_and_inputs(source, side, mean)
        maps = self.to_volume(self.network(inputs)).to(start.dtype)
        return self.corrected(start, maps[:, :1], source), maps[:, 1:]


class HalfUNet(UNet):
    """The `unet` on averages of 2x2x2 voxels: a smooth correction, interpolated from half the resolution.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
    """

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 16
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        first, rest = BANDS * source_channels, BANDS * (source_channels + 1)
        # Low-pass bands of source and prediction, position and side values.
        self.kept = [*range(source_channels), first, *range(rest, self.input_channels)]
        self.network = unet_network(len(self.kept), 1, width)

    def _correct(self, source: Tensor, side: Tensor | None, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        start, inputs = self.start_and_inputs(source, side, mean)
        depth, height, width = self.half_shape
        coarse = self.network(inputs[:, self.kept])[:, :, :depth, :height, :width].to(start.dtype)
        fine = F.interpolate(coarse, size=start.shape[2:], mode="trilinear")
        return self.corrected(start, fine, source), start[:, :0]


class HeteroscedasticUNet(ResidualDensity, UNet):
    """The `unet` with a second map: the log of a factor on the spread map of the closed-form mean's errors.

    A sample is the corrected prediction plus the error that a ResidualLaw draws, multiplied by the factor in every
    voxel. So voxels and regions are correlated as in `local_linear_spread`, and before training the model is that
    density, around the better mean. The network maximises the Gaussian likelihood of single voxels.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
        regions: number of regions.
    """

    learning_rate: ClassVar[float] = 3e-4

    maps = 2

    def __init__(
        self,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        *,
        width: int = 16,
        regions: int = 1,
    ) -> None:
        super().__init__(shape, side_features, source_channels, width=width)
        self.law = ResidualLaw(shape, side_features, source_channels, regions=regions)

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the closed-form mean and the law of its cross-fitted errors; return its cross-fitted predictions."""
        folds = default_folds(pairs) if folds is None else folds
        images = super().fit(pairs, folds, solve)
        self.law.fit(ResidualScans(pairs, images, folds))
        return images

    def unit(self) -> Tensor:
        """Return the spread map that the network's factor scales."""
        return self.law.spread[None]

    def objective(self) -> Objective:
        """Return the negative log-likelihood of voxels."""
        return VoxelLikelihood(self)

    def mean_and_factor(
        self, source: Tensor, side: Tensor | None = None, mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the corrected prediction and the factor on the spread, both `[N, 1, D, H, W]`."""
        image, maps = self._correct(source, side, mean)
        return image, (LOG_SCALE_BOUND * torch.tanh(maps / LOG_SCALE_BOUND)).exp()


class VoxelLikelihood(Objective):
    """Gaussian negative log-likelihood of independent voxels inside the mask, in nats per voxel.

    Training weights it by the variance to the power BETA, so that voxels with a large spread are learnt as well.

    Args:
        model: the U-Net.
    """

    def __init__(self, model: HeteroscedasticUNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, `nll` and `l1`."""
        target, mask = batch.target, batch.mask
        image, factor = self.model.mean_and_factor(batch.source, batch.side, batch.mean)
        inside = torch.ones_like(target) if mask is None else mask.to(target.dtype)
        deviation = batch.spread_or(self.model.law.spread, inside > 0) * factor
        nll = 0.5 * ((target - image) / deviation).square() + deviation.log() + 0.5 * log(2 * torch.pi)
        weight = deviation.detach() ** (2 * BETA)
        likelihood = mean_over_scans(nll.detach(), inside)
        loss = mean_over_scans(nll, weight * inside)
        return {"loss": loss, "nll": likelihood, "l1": masked_l1(image, target, mask).detach()}

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the corrected prediction `[N, 1, D, H, W]`."""
        return self.model.point_estimate(source, side)

    def selection_score(self, terms: Mapping[str, float]) -> float:
        """Return the likelihood without the weights of the training."""
        return terms["nll"]

    def sample(self, source: Tensor, side: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw one target per source, `[N, 1, D, H, W]`."""
        return self.model.sample(source, side, generator=generator)[0]


def unet_network(in_channels: int, out_channels: int, width: int) -> nn.Module:
    """Return nnU-Net's network with residual blocks, whose output is zero before training.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels at full resolution, even; doubled at each of the two coarser scales.
    """
    # Importing MONAI takes seconds, and only the networks need it.
    from monai.networks.nets import DynUNet

    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[3] * len(STRIDES),
        strides=STRIDES,
        upsample_kernel_size=STRIDES[1:],
        filters=[width * 2**scale for scale in range(len(STRIDES))],
        norm_name=("group", {"num_groups": GROUPS}),
        res_block=True,
    )
    # The correction starts at zero, so the estimate starts as the closed form's.
    for parameter in network.get_submodule("output_block").parameters():
        torch.nn.init.zeros_(parameter)
    return network
