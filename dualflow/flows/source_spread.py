"""SourceSpread: a spread map scaled by person and by voxel, and SPREADS, the choices of a spread."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from dualflow.flows.abnormality import COMMON
from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.person_features import person_count, person_values
from dualflow.flows.spread_map import ConstantSpread, VoxelSpread
from dualflow.flows.voxel_features import blur, foreground

BLUR = 0.8
"""Width, in voxels, of the blur of a source before it is compared with the training sources."""
LIMIT = 4.0
"""Largest absolute deviation from the training sources, in their standard deviations."""
MIN_DEVIATION = 0.01
"""Smallest standard deviation of a training source, in units of its intensity."""
FEATURES = 4
"""Number of features of a voxel, per channel of the source."""


class SourceSums(NamedTuple):
    """Sums over scans, of voxels with brain.

    Attributes:
        value: of blurred sources, `[C, D, H, W]`.
        square: of their squares, `[C, D, H, W]`.
        scans: number of scans with brain, `[1, D, H, W]`.
    """

    value: Tensor
    square: Tensor
    scans: Tensor

    @classmethod
    def of(cls, source: Tensor) -> Self:
        """Return the sums of one scan with the source `[C, D, H, W]`."""
        inside = foreground(source[None])[0].to(source.dtype)
        blurred = blur(source, BLUR) * inside
        return cls(blurred, blurred.square(), inside)

    def plus(self, other: SourceSums, sign: float = 1.0) -> SourceSums:
        """Return the sums of both, or without the other's if the sign is -1."""
        return SourceSums(*(mine + sign * theirs for mine, theirs in zip(self, other, strict=True)))


class SourceSpread(VoxelSpread):
    """The map of VoxelSpread times a scale of the person and one of the voxel, both log-linear in the source.

        r_v(x, side) = map_v s_person(side, tissue of x) s_voxel(z_v, z_v^2, x_v, x_v^2)

    z is the deviation of the blurred source from its mean over training people, in their standard deviations; 0 where
    few of them have brain. A voxel that is unusual, by a lesion or by atrophy, has a larger error than the same voxel
    of most people.

    Args:
        shape: the grid, D, H, W.
        scale: the unit outside the brain, in target units.
        side_features: number of side columns.
        source_channels: channels of the source.
    """

    centre: Tensor
    precision: Tensor

    def __init__(self, shape: tuple[int, int, int], scale: float, side_features: int, source_channels: int) -> None:
        super().__init__(shape, scale, side_features, source_channels)
        self.person = LogLinearScale(person_count(side_features, source_channels))
        self.voxel = LogLinearScale(FEATURES * source_channels)
        self.register_buffer("centre", torch.zeros(source_channels, *shape))
        self.register_buffer("precision", torch.zeros(source_channels, *shape))

    def forward(self, inside: Tensor, source: Tensor, side: Tensor) -> Tensor:
        """Return the unit of the residual of each voxel, `[N, 1, D, H, W]`."""
        with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
            person = self.person(person_values(source, side))[:, None, None, None, None]
            voxel = self.voxel(self.voxel_features(source))[:, None]
            return torch.where(inside, self.image * person * voxel, self.scale)

    def voxel_features(self, source: Tensor) -> Tensor:
        """Return the features `[N, D, H, W, 4C]` of the voxels of sources `[N, C, D, H, W]`."""
        z = ((blur(source, BLUR) - self.centre) * self.precision).clamp(-LIMIT, LIMIT)
        return torch.cat([z, z.square(), source, source.square()], dim=1).movedim(1, -1)

    @torch.no_grad()
    def set_sources(self, sums: SourceSums, scans: int) -> None:
        """Set centre and precision, the reciprocal standard deviation, from sums over a number of training scans."""
        count = sums.scans.clamp_min(1)
        self.centre.copy_(sums.value / count)
        variance = (sums.square / count - self.centre.square()).clamp_min(MIN_DEVIATION**2)
        self.precision.copy_(torch.where(sums.scans > COMMON * scans, variance.rsqrt(), 0.0))


SPREADS: dict[str, type[ConstantSpread]] = {"constant": ConstantSpread, "voxel": VoxelSpread, "source": SourceSpread}
