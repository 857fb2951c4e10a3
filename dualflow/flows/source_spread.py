"""SourceSpread: a spread map scaled by person and by voxel, and SPREADS, the choices of a spread."""

from __future__ import annotations

import torch
from torch import Tensor

from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.person_features import person_count, person_values
from dualflow.flows.spread_map import ConstantSpread, VoxelSpread
from dualflow.flows.usual_source import UsualSource

LIMIT = 4.0
"""Largest absolute deviation from the usual source, in standard deviations."""
FEATURES = 4
"""Number of features of a voxel, per channel of the source."""


class SourceSpread(VoxelSpread):
    """The map of VoxelSpread times a scale of the person and one of the voxel, both log-linear in the source.

        r_v(x, side) = map_v s_person(side, tissue of x) s_voxel(z_v, z_v^2, x_v, x_v^2)

    z is the deviation from the usual source. A voxel that is unusual, by a lesion or by atrophy, has a larger error
    than the same voxel of most people.

    Args:
        shape: the grid, D, H, W.
        scale: the unit outside the brain, in target units.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    def __init__(self, shape: tuple[int, int, int], scale: float, side_features: int, source_channels: int) -> None:
        super().__init__(shape, scale, side_features, source_channels)
        self.person = LogLinearScale(person_count(side_features, source_channels))
        self.voxel = LogLinearScale(FEATURES * source_channels)
        self.usual = UsualSource(shape, source_channels)

    def forward(self, inside: Tensor, source: Tensor, side: Tensor) -> Tensor:
        """Return the unit of the residual of each voxel, `[N, 1, D, H, W]`."""
        with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
            pairs = zip(source, inside[:, 0], strict=True)
            return self.unit(inside, source, side, torch.stack([self.usual.deviation(*pair) for pair in pairs]))

    def unit(self, inside: Tensor, source: Tensor, side: Tensor, deviation: Tensor) -> Tensor:
        """Return the unit of scans whose sources have these deviations, `[N, C, D, H, W]`."""
        person = self.person(person_values(source, side))[:, None, None, None, None]
        voxel = self.voxel(voxel_features(source, deviation))[:, None]
        return torch.where(inside, self.image * person * voxel, self.scale)


def voxel_features(source: Tensor, deviation: Tensor) -> Tensor:
    """Return the features `[N, D, H, W, 4C]` of the voxels of sources with their deviations, both `[N, C, D, H, W]`."""
    z = deviation.clamp(-LIMIT, LIMIT)
    return torch.cat([z, z.square(), source, source.square()], dim=1).movedim(1, -1)


SPREADS: dict[str, type[ConstantSpread]] = {"constant": ConstantSpread, "voxel": VoxelSpread, "source": SourceSpread}
