"""Features of voxelwise linear regression: soft tissue maps, their gradients, and side information."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

TISSUE_CENTRES = (0.1, 0.3, 0.45, 0.6, 0.75, 0.95)
"""Intensity at the centre of each soft tissue class."""
TISSUE_WIDTH = 0.1
MIN_WEIGHT = 1e-30
"""Smallest weight of a blur. Smaller ones change no result, but denormal numbers slow matrix products thirtyfold."""


def blur_matrix(size: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """Return the Gaussian smoothing of one axis as a row-stochastic matrix `[size, size]`; `sigma` in voxels."""
    position = torch.arange(size, dtype=torch.float64, device=device)
    weights = torch.exp(-0.5 * ((position[:, None] - position[None, :]) / max(sigma, 1e-3)) ** 2)
    matrix = (weights / weights.sum(dim=1, keepdim=True)).float()
    return torch.where(matrix < MIN_WEIGHT, 0.0, matrix)


def blur(volume: Tensor, sigma: float) -> Tensor:
    """Smooth the last three axes of `[..., D, H, W]` by a Gaussian with a standard deviation of `sigma` voxels.

    A product with one small matrix per axis is faster than a convolution on these grids and needs no padding.
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
    """Return radial basis functions of the intensity, `[N, C, D, H, W]` in 0..1 to `[N, 6C, D, H, W]`.

    A linear function of them is nonlinear in intensity, and bounded outside the range of the training data.
    """
    centres = torch.tensor(TISSUE_CENTRES, dtype=source.dtype, device=source.device).view(1, -1, 1, 1, 1)
    return torch.exp(-0.5 * ((source.unsqueeze(2) - centres) / TISSUE_WIDTH) ** 2).flatten(1, 2)


def foreground(source: Tensor) -> Tensor:
    """Return the subject's brain mask `[N, 1, D, H, W]`, bool: outside of it every channel is exactly 0."""
    return (source != 0).any(dim=1, keepdim=True)


def gradients(volume: Tensor) -> Tensor:
    """Return central differences along the three axes, `[N, C, D, H, W]` to `[N, 3C, D, H, W]`, per voxel."""
    parts = [(volume.roll(-1, axis) - volume.roll(1, axis)) / 2 for axis in (2, 3, 4)]
    return torch.cat(parts, dim=1)


class VoxelFeatures(Protocol):
    """Features of a regression; feature 0 is the constant 1."""

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""

    def __call__(self, source: Tensor, side: Tensor) -> Tensor:
        """Return `[N, P, D, H, W]` from the source `[N, C, D, H, W]` and complete side values `[N, S]`."""


def _expand(side: Tensor, like: Tensor) -> Tensor:
    """Expand side values `[N, S]` to constant maps on the grid of `like`."""
    return side[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


class IntensityFeatures:
    """Intercept, source intensities and side values."""

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return 1 + source_channels + side_features

    def __call__(self, source: Tensor, side: Tensor) -> Tensor:
        """Return `[N, P, D, H, W]`."""
        return torch.cat([torch.ones_like(source[:, :1]), source, _expand(side, source)], dim=1)


class TissueFeatures:
    """Soft tissue maps at two resolutions, their gradients, side values, and side values times grey matter.

    Blurred maps model the scanner's point spread function and partial volume. To first order a shifted map differs by
    its gradient times the displacement, so gradients correct the error of the affine registration (implicit
    registration). Side values times grey matter restrict an effect of age to tissue. Gradients and grey matter come
    from the first source alone, because all sources share its space and displacements.

    Args:
        narrow: standard deviation of the PET-resolution blur, voxels; 0.8 is 7.5 mm full width at half maximum on a
            4 mm grid.
        wide: standard deviation of the wider blur, voxels.
    """

    # Tissue classes of the first source with gradient features: fluid, grey matter and white matter.
    edges = (0, 2, 4)
    # Tissue classes of the first source that sum to grey matter.
    grey = (2, 3)

    def __init__(self, narrow: float = 0.8, wide: float = 2.5) -> None:
        self.narrow, self.wide = narrow, wide

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return 1 + 2 * len(TISSUE_CENTRES) * source_channels + 3 * len(self.edges) + 2 * side_features

    def __call__(self, source: Tensor, side: Tensor) -> Tensor:
        """Return `[N, P, D, H, W]`."""
        narrow = blur(soft_tissue(source), self.narrow)
        wide = blur(narrow, (self.wide**2 - self.narrow**2) ** 0.5)
        grey = narrow[:, list(self.grey)].sum(dim=1, keepdim=True)
        side_maps = _expand(side, source)
        parts = [torch.ones_like(source[:, :1]), narrow, wide, gradients(narrow[:, list(self.edges)])]
        return torch.cat([*parts, side_maps, side_maps * grey], dim=1)
