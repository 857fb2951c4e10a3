"""What a voxelwise linear law may see of the sources: blurred soft tissue maps, their gradients, side information."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

CENTRES = (0.1, 0.3, 0.45, 0.6, 0.75, 0.95)
WIDTH = 0.1


def blur_matrix(size: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """Gaussian smoothing of one axis as a matrix `[size, size]`, each row summing to one; `sigma` in voxels."""
    position = torch.arange(size, dtype=torch.float64, device=device)
    weights = torch.exp(-0.5 * ((position[:, None] - position[None, :]) / max(sigma, 1e-3)) ** 2)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def blur(volume: Tensor, sigma: float) -> Tensor:
    """Smooth the last three axes of `[..., D, H, W]` by a Gaussian of `sigma` voxels.

    A product with one small matrix per axis: faster than a convolution on such grids, and edges need no rule.
    """
    if sigma == 0:
        return volume
    d, h, w = (blur_matrix(size, sigma, volume.device) for size in volume.shape[-3:])
    leading = volume.shape[:-3]
    flat = volume.reshape(-1, *volume.shape[-3:])
    flat = flat @ w.T
    flat = h @ flat
    flat = (d @ flat.flatten(2)).reshape(flat.shape)
    return flat.reshape(*leading, *volume.shape[-3:])


def soft_tissue(source: Tensor) -> Tensor:
    """Soft assignment of each voxel's intensity to six classes, `[N, C, D, H, W]` in 0..1 to `[N, 6C, D, H, W]`.

    Radial basis functions, so that a law linear in them is nonlinear in intensity and bounded outside the range seen.
    """
    centres = torch.tensor(CENTRES, dtype=source.dtype, device=source.device).view(1, -1, 1, 1, 1)
    return torch.exp(-0.5 * ((source.unsqueeze(2) - centres) / WIDTH) ** 2).flatten(1, 2)


def foreground(source: Tensor) -> Tensor:
    """Where the person's own brain mask is, `[N, 1, D, H, W]` bool: outside it every channel is exactly 0."""
    return (source != 0).any(dim=1, keepdim=True)


def gradients(volume: Tensor) -> Tensor:
    """Central differences per voxel along the three axes, `[N, C, D, H, W]` to `[N, 3C, D, H, W]`."""
    parts = [(volume.roll(-1, axis) - volume.roll(1, axis)) / 2 for axis in (2, 3, 4)]
    return torch.cat(parts, dim=1)


class VoxelFeatures(Protocol):
    """A design: how many features for so many side columns, and their values; feature 0 is the constant one."""

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""

    def __call__(self, source: Tensor, side: Tensor) -> Tensor:
        """Return `[N, P, D, H, W]` from the source `[N, C, D, H, W]` and complete side values `[N, S]`."""


def _everywhere(side: Tensor, like: Tensor) -> Tensor:
    return side[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


class IntensityFeatures:
    """One, the sources' intensities, and the side values: the plain voxelwise regression."""

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return 1 + source_channels + side_features

    def __call__(self, source: Tensor, side: Tensor) -> Tensor:
        """Return `[N, P, D, H, W]`."""
        return torch.cat([torch.ones_like(source[:, :1]), source, _everywhere(side, source)], dim=1)


class TissueFeatures:
    """Soft tissue maps at PET resolution and wider, their gradients, and side values alone and times grey matter.

    Blurred maps model the scanner's point spread and partial volume. To first order a shift of the map is its gradient
    times the displacement, so gradients let each voxel correct what the affine registration left (implicit
    registration). Side values times grey matter let an effect of age act where there is tissue to act on. Gradients and
    grey matter are those of the first source alone: the others lie in its space, and share its displacements.

    Args:
        narrow: standard deviation of the PET-resolution blur, voxels; 0.8 is 7.5 mm full width at half maximum on a
            4 mm grid.
        wide: standard deviation of the wider blur, voxels.
    """

    # Classes of the first source whose gradients are taken: fluid, grey and white matter span the edges of a brain.
    edges = (0, 2, 4)
    # Classes of it whose sum stands for grey matter in the interactions with side values.
    grey = (2, 3)

    def __init__(self, narrow: float = 0.8, wide: float = 2.5) -> None:
        self.narrow, self.wide = narrow, wide

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return 1 + 2 * len(CENTRES) * source_channels + 3 * len(self.edges) + 2 * side_features

    def __call__(self, source: Tensor, side: Tensor) -> Tensor:
        """Return `[N, P, D, H, W]`."""
        narrow = blur(soft_tissue(source), self.narrow)
        wide = blur(narrow, (self.wide**2 - self.narrow**2) ** 0.5)
        grey = narrow[:, list(self.grey)].sum(dim=1, keepdim=True)
        everywhere = _everywhere(side, source)
        parts = [torch.ones_like(source[:, :1]), narrow, wide, gradients(narrow[:, list(self.edges)])]
        return torch.cat([*parts, everywhere, everywhere * grey], dim=1)
