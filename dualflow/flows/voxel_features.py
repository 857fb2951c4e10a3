"""Features of voxelwise linear regression: soft tissue maps, their gradients, and side information."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dualflow.errors import ShapeError

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


def blur(volume: Tensor, sigma: float, step: int = 1) -> Tensor:
    """Smooth the last three axes of `[..., D, H, W]` by a Gaussian with a standard deviation of `sigma` voxels.

    A product with one small matrix per axis is faster than a convolution on these grids and needs no padding. With a
    `step` only every step-th voxel along each axis is computed.
    """
    if sigma == 0:
        return volume[..., ::step, ::step, ::step]
    d, h, w = (blur_matrix(size, sigma, volume.device)[::step] for size in volume.shape[-3:])
    return along_axes(volume, d, h, w)


def along_axes(volume: Tensor, d: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Multiply the last three axes of `[..., D, H, W]` by a matrix each."""
    d, h, w = (matrix.to(volume.dtype) for matrix in (d, h, w))
    flat = volume.reshape(-1, *volume.shape[-3:])
    flat = flat @ w.T
    flat = h @ flat
    flat = d @ flat.flatten(2)
    return flat.reshape(*volume.shape[:-3], len(d), len(h), len(w))


def bounding_box(mask: Tensor) -> tuple[slice, slice, slice]:
    """Return the smallest box that holds all true voxels of a mask `[D, H, W]`; the first voxel if there are none."""
    if mask.is_meta:  # without values, the whole grid
        return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
    extents = [mask.any(dim=other).nonzero() for other in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (slice(int(e.min()), int(e.max()) + 1) if len(e) else slice(0, 1) for e in extents)
    return x, y, z


def soft_tissue(source: Tensor, detail: Tensor | None = None) -> Tensor:
    """Return radial basis functions of the intensity, `[N, C, D, H, W]` in 0..1 to `[N, 6C, D, H, W]`.

    A linear function of them is nonlinear in intensity, and bounded outside the range of the training data. With the
    detail `[N, C, D, H, W]`, the standard deviation of the intensities within each voxel, they are the means of these
    functions over a normal distribution of intensities, and tell a voxel of one tissue from a mixture of others.
    """
    centres = torch.tensor(TISSUE_CENTRES, dtype=source.dtype, device=source.device).view(1, -1, 1, 1, 1)
    distance = (source.unsqueeze(2) - centres).div_(TISSUE_WIDTH)
    if detail is None:
        return distance.square_().mul_(-0.5).exp_().flatten(1, 2)
    widening = 1 + (detail / TISSUE_WIDTH).square().unsqueeze(2)
    return distance.square_().div_(widening).mul_(-0.5).exp_().div_(widening.sqrt()).flatten(1, 2)


def without_detail(source: Tensor, channels: int) -> Tensor:
    """Return the C images of a source `[..., C or 2C, D, H, W]`, without the detail of each."""
    return source[..., :channels, :, :, :]


def images_and_detail(source: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split a source `[N, C or 2C, D, H, W]` into its C images and the detail of each; None if it carries no detail.

    Raises:
        ShapeError: it has another number of channels.
    """
    if source.shape[1] not in (channels, 2 * channels):
        raise ShapeError(
            f"source of {source.shape[1]} channels, expected {channels} images, or {2 * channels} channels with the "
            "detail of each"
        )
    return without_detail(source, channels), source[:, channels:] if source.shape[1] > channels else None


def foreground(source: Tensor) -> Tensor:
    """Return the subject's brain mask `[N, 1, D, H, W]`, bool: outside of it every channel is exactly 0."""
    return (source != 0).any(dim=1, keepdim=True)


def gradients(volume: Tensor) -> Tensor:
    """Return central differences along the three axes, `[N, C, D, H, W]` to `[N, 3C, D, H, W]`, per voxel.

    Beyond its faces the volume continues with its last value.
    """
    padded = F.pad(volume, (1,) * 6, mode="replicate")
    i, after, before = slice(1, -1), slice(2, None), slice(None, -2)
    parts = [
        padded[:, :, after, i, i] - padded[:, :, before, i, i],
        padded[:, :, i, after, i] - padded[:, :, i, before, i],
        padded[:, :, i, i, after] - padded[:, :, i, i, before],
    ]
    return torch.cat(parts, dim=1) / 2


def brain_box(source: Tensor) -> tuple[slice, slice, slice]:
    """Return the box of the brain masks of `[N, C, D, H, W]` with a margin of one voxel, which gradients need."""
    box = bounding_box(foreground(source).any(dim=0)[0])
    x, y, z = (slice(max(part.start - 1, 0), part.stop + 1) for part in box)
    return x, y, z


class VoxelFeatures(Protocol):
    """Features of a regression; feature 0 is the constant 1. Outside the brain mask they have no meaning."""

    @property
    def detailed(self) -> bool:
        """Whether the features need the detail of the source."""

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""

    def odd(self, side_features: int, source_channels: int = 1) -> list[int]:
        """Return the positions of the features whose sign a left-right reflection of the brain flips."""

    def __call__(self, source: Tensor, side: Tensor, detail: Tensor | None = None) -> Tensor:
        """Return `[N, P, D, H, W]` from source and detail `[N, C, D, H, W]` and complete side values `[N, S]`."""


def _expand(side: Tensor, like: Tensor) -> Tensor:
    """Expand side values `[N, S]` to constant maps on the grid of `like`."""
    return side[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


class IntensityFeatures:
    """Intercept, source intensities and side values."""

    detailed = False

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return 1 + source_channels + side_features

    def odd(self, side_features: int, source_channels: int = 1) -> list[int]:
        """Return the positions of the features that a reflection flips: none."""
        return []

    def __call__(self, source: Tensor, side: Tensor, detail: Tensor | None = None) -> Tensor:
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

    detailed = False
    # Tissue classes of the first source with gradient features: fluid, grey matter and white matter.
    edges = (0, 2, 4)
    # Tissue classes of the first source that sum to grey matter.
    grey = (2, 3)

    def __init__(self, narrow: float = 0.8, wide: float = 2.5) -> None:
        self.narrow, self.wide = narrow, wide

    def count(self, side_features: int, source_channels: int = 1) -> int:
        """Return the number of features."""
        return 1 + 2 * len(TISSUE_CENTRES) * source_channels + 3 * len(self.edges) + 2 * side_features

    def odd(self, side_features: int, source_channels: int = 1) -> list[int]:
        """Return the positions of the gradients along axis 0, which points from left to right."""
        first = 1 + 2 * len(TISSUE_CENTRES) * source_channels
        return list(range(first, first + len(self.edges)))

    def __call__(self, source: Tensor, side: Tensor, detail: Tensor | None = None) -> Tensor:
        """Return `[N, P, D, H, W]`."""
        background = soft_tissue(torch.zeros_like(source[:1, :, :1, :1, :1]))
        box = brain_box(source)
        crop = (slice(None), slice(None), *box)
        # The difference from the background is 0 outside the brain, so blurs within the box of the brain are exact.
        tissue = soft_tissue(source[crop], None if detail is None else detail[crop]) - background
        axes = zip(source.shape[2:], box, strict=True)
        blurs = zip(*(self._blurs(size, part, source.device) for size, part in axes), strict=True)
        narrow, wide = (background + along_axes(tissue, *matrices) for matrices in blurs)
        grey = narrow[:, list(self.grey)].sum(dim=1, keepdim=True)
        side_maps = _expand(side, grey)
        parts = [
            torch.ones_like(grey),
            narrow,
            wide,
            gradients(narrow[:, list(self.edges)]),
            side_maps,
            side_maps * grey,
        ]
        features = source.new_zeros(len(source), self.count(side.shape[1], source.shape[1]), *source.shape[2:])
        features[:, 0] = 1
        features[crop] = torch.cat(parts, dim=1)
        return features

    def _blurs(self, size: int, part: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the narrow blur of a part of one axis, and the wide blur, which follows the narrow one."""
        narrow = blur_matrix(size, self.narrow, device)
        wide = blur_matrix(size, (self.wide**2 - self.narrow**2) ** 0.5, device) @ narrow
        return narrow[part, part], wide[part, part]
