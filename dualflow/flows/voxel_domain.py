"""VoxelDomain: the voxels of a local regression, and smoothing of maps over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.errors import DataError
from dualflow.flows.voxel_features import blur, bounding_box

SMOOTH_CHUNK = 16
MARGIN = 4
"""Voxels by which a fit continues beyond the training masks; a new person's brain may reach that far."""


def extended(maps: Tensor, mask: Tensor) -> Tensor:
    """Continue maps `[M, D, H, W]` by MARGIN voxels beyond a mask `[D, H, W]`, with the mean of known neighbours."""
    known, values = mask.to(maps.dtype)[None, None], maps * mask
    for _ in range(MARGIN):
        share = F.avg_pool3d(known, 3, stride=1, padding=1)
        mean = F.avg_pool3d(values[:, None], 3, stride=1, padding=1)[:, 0] / share[0].clamp_min(1e-6)
        values = torch.where(known[0] > 0, values, mean)
        known = (share > 0).to(maps.dtype)
    return values


class VoxelDomain:
    """The voxels with coefficients: the union of the training masks.

    The model grid is symmetric about the midsagittal plane, so flipping axis 0 is the reflection of the brain.

    Args:
        mask: `[D, H, W]` bool.

    Raises:
        DataError: the mask is empty.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.bool()
        self.size = int(self.mask.sum())
        if self.size == 0:
            raise DataError("the training masks hold no voxel; check the brain masks of the training scans")
        self.box = bounding_box(self.mask | self.mask.flip(0))
        self.inside = self.mask[self.box]
        self.positions = self.inside.flatten().nonzero()[:, 0]

    def lattice(self, step: int) -> Tensor:
        """Return the positions among the voxels of every `step`-th voxel along each axis."""
        index = torch.full(self.inside.shape, -1)
        index[self.inside] = torch.arange(self.size)
        sites = index[::step, ::step, ::step].flatten()
        return sites[sites >= 0]

    def smooth(self, maps: Tensor, sigma: float, sign: Tensor | None = None, step: int = 1) -> Tensor:
        """Smooth maps by a Gaussian of width `sigma`, in voxels, at every voxel or at the voxels of a lattice.

        Args:
            maps: `[M, V]`, 0 outside the domain.
            sigma: in voxels; 0 does not smooth.
            sign: `[M]`; adds the mirror image of each map, times its sign.
            step: of the lattice.
        """
        if sigma == 0 and sign is None and step == 1:
            return maps
        kept = self.inside[::step, ::step, ::step].flatten().nonzero()[:, 0]
        smoothed = torch.empty(len(maps), len(kept))
        for start in range(0, len(maps), SMOOTH_CHUNK):
            chunk = slice(start, start + SMOOTH_CHUNK)
            dense = torch.zeros(len(maps[chunk]), self.inside.numel())
            dense = dense.index_copy_(1, self.positions, maps[chunk]).view(-1, *self.inside.shape)
            if sign is not None:
                dense = dense + sign[chunk, None, None, None] * dense.flip(1)
            torch.index_select(blur(dense, sigma, step).flatten(1), 1, kept, out=smoothed[chunk])
        return smoothed
