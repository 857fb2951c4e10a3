"""SourceSpread: a spread map scaled by person and by voxel, and SPREADS, the choices of a spread."""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.person_features import person_count, person_values
from dualflow.flows.spread_map import ConstantSpread, VoxelSpread
from dualflow.flows.voxel_scale import VoxelScale


class SourceSpread(VoxelSpread):
    """The map of VoxelSpread times a scale of the person and one of the voxel, both log-linear.

        r_v(x, side) = map_v s_person(side, tissue of x) s_voxel(x)

    Args:
        shape: the grid, D, H, W.
        scale: the unit outside the brain, in target units.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], scale: float, side_features: int, source_channels: int) -> None:
        super().__init__(shape, scale, side_features, source_channels)
        self.person = LogLinearScale(person_count(side_features, source_channels))
        self.voxel = VoxelScale(shape, source_channels)

    def forward(self, inside: Tensor, source: Tensor, side: Tensor) -> Tensor:
        """Return the unit of the residual of each voxel, `[N, 1, D, H, W]`."""
        with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
            return self.unit(inside, self.person(person_values(source, side)), self.voxel(inside, source))

    def unit(self, inside: Tensor, person_scale: Tensor, voxel_scale: Tensor) -> Tensor:
        """Return the unit of scans whose scales of people `[N]` and of voxels `[N, 1, D, H, W]` are known."""
        return torch.where(inside, self.image * person_scale[:, None, None, None, None] * voxel_scale, self.scale)


SPREADS: dict[str, type[ConstantSpread]] = {"constant": ConstantSpread, "voxel": VoxelSpread, "source": SourceSpread}
