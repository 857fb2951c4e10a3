"""UNet: MONAI's residual U-Net at half resolution, which predicts a correction of the mean image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualflow.baselines.baseline import Baseline
from dualflow.baselines.linear_models import MeanImage, VoxelwiseLinear
from dualflow.errors import ShapeError
from dualflow.flows.local_linear_fit import Pairs, Solver, fit_local_linear
from dualflow.flows.mean_models import coordinates, known_side
from dualflow.flows.objective import ImageObjective, Objective
from dualflow.flows.squeeze import HaarSqueeze

STRIDES = (1, 2, 2)
GROUPS = 2
WIDTHS = range(6, 129, 2)


class UNet(Baseline):
    """nnU-Net's network (Isensee et al. 2021), from Haar bands to the bands of a correction of the mean target.

    The eight bands at half the resolution cost an eighth of the full grid, and the transform is invertible. The inputs
    are the source, the voxel position, the mean target and the prediction of a voxelwise regression, which helps with
    few scans. In training this prediction is cross-fitted; otherwise the network would rely on it too much for new
    subjects. Each side value is a constant channel with a second channel that flags known values.

    Args:
        shape: the grid, D, H, W: even sizes, padded internally to multiples of eight.
        side_features: number of side columns.
        source_channels: channels of the source.
        width: channels at half resolution, even; doubled at each of the two coarser scales.
    """

    position: Tensor

    def __init__(
        self, shape: tuple[int, int, int], side_features: int = 0, source_channels: int = 1, *, width: int = 16
    ) -> None:
        super().__init__()
        if any(size % 2 for size in shape):
            raise ShapeError(f"grid {tuple(shape)} cannot be halved; choose even sizes")
        half = [size // 2 for size in shape]
        self.side_features = side_features
        self.template = MeanImage(shape, side_features, source_channels)
        self.voxelwise = VoxelwiseLinear(shape, side_features, source_channels)
        self.haar = HaarSqueeze()
        self.network = _network(side_features, source_channels, width)
        self.register_buffer("position", coordinates((half[0], half[1], half[2])), persistent=False)
        unit = prod(STRIDES)
        self.padding = [extra for size in reversed(half) for extra in (0, -size % unit)]

    def fit(self, pairs: Pairs, folds: Sequence[int] | None = None, solve: Solver = fit_local_linear) -> list[Tensor]:
        """Fit template and voxelwise regression; return the regression's cross-fitted predictions for training."""
        self.template.fit(pairs, folds)
        return self.voxelwise.fit(pairs, folds, solve)

    def objective(self) -> Objective:
        """Return the mean absolute error inside the mask."""
        return ImageObjective(self, takes_mean=True)

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the corrected template."""
        return self(source, side)  # type: ignore[no-any-return]

    def forward(self, source: Tensor, side: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
        """Return the corrected template; `mean` replaces the voxelwise prediction if given."""
        template = self.template.point_estimate(source)
        linear = self.voxelwise.point_estimate(source, side) if mean is None else mean
        bands = [self.haar(image)[0] for image in (source, template, linear)]
        size = bands[0].shape[2:]
        position = self.position.expand(len(source), -1, -1, -1, -1)
        values = known_side(side, source, self.side_features)[:, :, None, None, None].expand(-1, -1, *size)
        out = self.network(F.pad(torch.cat([*bands, position, values], dim=1), self.padding))
        correction = self.haar.inverse(out[:, :, : size[0], : size[1], : size[2]])[0]
        return template + correction.to(template.dtype)


def _network(side_features: int, source_channels: int, width: int) -> nn.Module:
    # Importing MONAI takes seconds, and only this network needs it.
    from monai.networks.nets import DynUNet

    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=8 * (source_channels + 2) + 3 + 2 * side_features,
        out_channels=8,
        kernel_size=[3] * len(STRIDES),
        strides=STRIDES,
        upsample_kernel_size=STRIDES[1:],
        filters=[width * 2**scale for scale in range(len(STRIDES))],
        norm_name=("group", {"num_groups": GROUPS}),
        res_block=True,
    )
    # The correction starts at zero, so the estimate starts as the template.
    for parameter in network.get_submodule("output_block").parameters():
        torch.nn.init.zeros_(parameter)
    return network


@cache
def _parameters(side_features: int, source_channels: int, width: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _network(side_features, source_channels, width).parameters())


def width_for(parameters: int, side_features: int = 0, source_channels: int = 1) -> int:
    """Return the width of the U-Net with the closest number of parameters, by ratio."""
    return min(WIDTHS, key=lambda width: abs(log(_parameters(side_features, source_channels, width) / parameters)))
