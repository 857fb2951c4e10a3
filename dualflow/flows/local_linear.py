"""LocalLinear: the target's conditional mean as a linear regression with separate coefficients in every voxel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualflow.errors import ShapeError
from dualflow.flows.side_information import side_values
from dualflow.flows.voxel_features import TissueFeatures, VoxelFeatures, foreground, images_and_detail


class LocalLinear(nn.Module):
    """Voxelwise linear regression with coefficients in buffers, continued a few voxels beyond the training masks.

    The prediction is 0 wherever the source is exactly 0, outside the subject's brain mask, so a flow shifted by it has
    no residual there.

    Args:
        shape: the grid, D, H, W.
        side_features: number of side columns.
        source_channels: channels of the source.
        design: the features; by default TissueFeatures.
    """

    coefficients: Tensor
    side_mean: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        side_features: int = 0,
        source_channels: int = 1,
        *,
        design: VoxelFeatures | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.side_features, self.source_channels = tuple(shape), side_features, source_channels
        self.design = TissueFeatures() if design is None else design
        self.count = self.design.count(side_features, source_channels)
        self.odd = self.design.odd(side_features, source_channels)
        self.register_buffer("coefficients", torch.zeros(self.count, *shape))
        self.register_buffer("side_mean", torch.zeros(side_features))

    def features(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the features `[N, P, D, H, W]`; an unknown side value counts as its training mean.

        Raises:
            ShapeError: the source is not `[N, C or 2C, D, H, W]` on the model's grid, or side not `[N, S]`.
        """
        expected, channels = (self.source_channels, *self.shape), (self.source_channels, 2 * self.source_channels)
        if source.ndim != 5 or tuple(source.shape[2:]) != self.shape or source.shape[1] not in channels:
            raise ShapeError(
                f"source is {tuple(source.shape)}; expected [N, {', '.join(map(str, expected))}], so resample it to "
                "the grid that the regression was built for"
            )
        images, detail = images_and_detail(source, self.source_channels)
        if self.design.detailed and detail is None:
            raise ShapeError(
                f"source of {source.shape[1]} channels, expected {2 * self.source_channels}: the regression was fitted "
                "with the detail of each image, which preprocessing writes"
            )
        # Differences of blurred maps need more precision than bfloat16.
        with torch.autocast(source.device.type, enabled=False):
            detail = detail.float() if detail is not None and self.design.detailed else None
            return self.design(images.float(), self.complete(source, side), detail)

    def complete(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return side values `[N, S]` less their training means, 0 where unknown.

        Raises:
            ShapeError: side is not `[N, S]`.
        """
        return torch.nan_to_num(side_values(side, source, self.side_features).float() - self.side_mean, nan=0.0)

    def forward(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the conditional mean `[N, 1, D, H, W]`, in the target's unit."""
        features = self.features(source, side)
        return (features * self.coefficients).sum(dim=1, keepdim=True) * foreground(source)
