"""U-Nets at half resolution that correct a local linear regression, with and without a map of its errors' size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import log, prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import LocalLinearBaseline, default_folds
from dualflow.baselines.residual_density import ResidualDensity
from dualflow.baselines.residual_law import ResidualLaw
from dualflow.baselines.residuals import ResidualScans
from dualflow.errors import ShapeError
from dualflow.flows.closed_form_fits import Solver, fit_closed_form
from dualflow.flows.mean_models import coordinates, known_side
from dualflow.flows.objective import ImageObjective, Objective, masked_l1
from dualflow.flows.regression_scans import Pairs
from dualflow.flows.squeeze import HaarSqueeze
from dualflow.flows.voxel_features import foreground

STRIDES = (1, 2, 2)
GROUPS = 2
WIDTHS = range(6, 129, 2)
LOG_SCALE_BOUND = 1.5
"""Largest absolute log of the factor on the spread map."""
BETA = 0.5
"""Power of the variance that weights the likelihood of a voxel (Seitzer et al. 2022, beta-NLL)."""


class UNet(Baseline):
    """nnU-Net's network (Isensee et al. 2021), from Haar bands to the bands of a correction of the linear regression.

    The eight bands at half the resolution cost an eighth of the full grid, and the transform is invertible. The inputs
    are the source, the voxel position and the prediction of the `local_linear` baseline, which is also the start: the
    correction is zero before training. In training the prediction is cross-fitted; otherwise the network would learn
    to correct smaller errors than those for new people. Each side value is a constant channel with a second channel
    that flags known values.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
    """

    mean_baseline: ClassVar[type[Baseline]] = LocalLinearBaseline
    """The prediction to correct; its `fit` returns cross-fitted images."""
    maps: ClassVar[int] = 1
    """Volumes that the network returns."""
    position: Tensor

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 16
    ) -> None:
        super().__init__()
        if any(size % 2 for size in shape):
            raise ShapeError(f"grid {tuple(shape)} cannot be halved; choose even sizes")
        half = [size // 2 for size in shape]
        self.side_features = side_features
        self.mean = self.mean_baseline(shape, side_features, source_channels)
        self.haar = HaarSqueeze()
        self.network = _network(side_features, source_channels, self.maps, width)
        self.register_buffer("position", coordinates((half[0], half[1], half[2])), persistent=False)
        unit = prod(STRIDES)
        self.padding = [extra for size in reversed(half) for extra in (0, -size % unit)]

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_closed_form) -> list[Tensor]:
        """Fit the linear regression; return its cross-fitted predictions for training."""
        images = self.mean.fit(pairs, folds, solve)
        assert images is not None
        return images

    def objective(self) -> Objective:
        """Return the mean absolute error inside the mask."""
        return ImageObjective(self, takes_mean=True)

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the corrected prediction."""
        return self(source, side)  # type: ignore[no-any-return]

    def forward(self, source: Tensor, side: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
        """Return the corrected prediction; `mean` replaces the linear regression's if given."""
        return self._correct(source, side, mean)[0]

    def _correct(self, source: Tensor, side: Tensor | None, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the corrected prediction and the further maps of the network, `[N, maps - 1, D, H, W]`."""
        start = self.mean.point_estimate(source, side) if mean is None else mean
        bands = [self.haar(image)[0] for image in (source, start)]
        size = bands[0].shape[2:]
        position = self.position.expand(len(source), -1, -1, -1, -1)
        values = known_side(side, source, self.side_features)[:, :, None, None, None].expand(-1, -1, *size)
        out = self.network(F.pad(torch.cat([*bands, position, values], dim=1), self.padding))
        maps = self.haar.inverse(out[:, :, : size[0], : size[1], : size[2]])[0].to(start.dtype)
        return start + maps[:, :1] * foreground(source), maps[:, 1:]


class HeteroscedasticUNet(ResidualDensity, UNet):
    """The `unet` with a second map: the log of a factor on the spread map of the `local_linear_spread` density.

    A sample is the corrected prediction plus the error that the ResidualLaw of that density draws, multiplied by the
    factor in every voxel. So voxels and regions are correlated as there, and before training the model is that
    density. The network maximises the Gaussian likelihood of single voxels.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
        regions: number of regions.
    """

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
        """Fit the linear regression and the law of its cross-fitted errors; return its cross-fitted predictions."""
        folds = default_folds(pairs) if folds is None else folds
        images = super().fit(pairs, folds, solve)
        self.law.fit(ResidualScans(pairs, images, folds))
        return images

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

    def forward(
        self,
        target: Tensor,
        source: Tensor,
        side: Tensor | None = None,
        mask: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss`, `nll` and `l1`."""
        image, factor = self.model.mean_and_factor(source, side, mean)
        deviation = self.model.law.spread * factor
        nll = 0.5 * ((target - image) / deviation).square() + deviation.log() + 0.5 * log(2 * torch.pi)
        weight = deviation.detach() ** (2 * BETA)
        inside = torch.ones_like(target) if mask is None else mask.to(target.dtype)
        likelihood = (nll.detach() * inside).sum() / inside.sum().clamp_min(1)
        loss = (nll * weight * inside).sum() / (weight * inside).sum().clamp_min(1e-12)
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


def _network(side_features: int, source_channels: int, maps: int, width: int) -> nn.Module:
    # Importing MONAI takes seconds, and only this network needs it.
    from monai.networks.nets import DynUNet

    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=8 * (source_channels + 1) + 3 + 2 * side_features,
        out_channels=8 * maps,
        kernel_size=[3] * len(STRIDES),
        strides=STRIDES,
        upsample_kernel_size=STRIDES[1:],
        filters=[width * 2**scale for scale in range(len(STRIDES))],
        norm_name=("group", {"num_groups": GROUPS}),
        res_block=True,
    )
    # The correction starts at zero, so the estimate starts as the linear regression's.
    for parameter in network.get_submodule("output_block").parameters():
        torch.nn.init.zeros_(parameter)
    return network


@cache
def _parameters(side_features: int, source_channels: int, width: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _network(side_features, source_channels, 1, width).parameters())


def width_for(parameters: int, side_features: int = 0, source_channels: int = 1) -> int:
    """Return the width of the U-Net with the closest number of parameters, by ratio."""
    return min(WIDTHS, key=lambda width: abs(log(_parameters(side_features, source_channels, width) / parameters)))
