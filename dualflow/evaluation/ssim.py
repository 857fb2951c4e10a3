"""Structural similarity (Wang et al. 2004) of volumes.

The arithmetic repeats MONAI's operation by operation, because importing MONAI takes longer than scoring a model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL = 11
"""Edge of the Gaussian window in voxels."""
SIGMA = 1.5
"""Standard deviation of the Gaussian window in voxels."""
_K1, _K2 = 0.01, 0.03


_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales in Wang et al. (2003), the finest first."""


def multi_scale_ssim(first: Tensor, second: Tensor, mask: Tensor, data_range: float) -> float:
    """Multi-scale structural similarity (Wang et al. 2003), each scale averaged over the mask.

    Args:
        first: volume `[D, H, W]`.
        second: volume `[D, H, W]`.
        mask: bool `[D, H, W]`; a coarser voxel is inside if half of its voxels are.
        data_range: width of the intensity range.

    Returns:
        From 0 to 1; negative similarities count as 0.
    """
    images = torch.stack([first, second, mask.to(first.dtype)])[:, None]
    scales = 1
    while scales < len(_EXPONENTS) and min(first.shape) // 2**scales >= KERNEL:
        scales += 1
    result, total = 1.0, sum(_EXPONENTS[:scales])
    for scale, exponent in enumerate(_EXPONENTS[:scales]):
        if scale:
            images = F.avg_pool3d(images, 2)
        padded = F.pad(images[:2], [KERNEL // 2] * 6, mode="replicate")
        luminance, contrast = _similarity(padded[0, 0], padded[1, 0], data_range)
        similarity = luminance * contrast if scale == scales - 1 else contrast
        inside = similarity[images[2, 0] >= 0.5]
        mean = float(inside.double().mean()) if inside.numel() else 1.0
        result *= max(mean, 0.0) ** (exponent / total)
    return result


def ssim_map(first: Tensor, second: Tensor, data_range: float) -> Tensor:
    """Structural similarity around each voxel.

    Args:
        first: volume `[D, H, W]`.
        second: volume `[D, H, W]`.
        data_range: width of the intensity range.

    Returns:
        `[D - 10, H - 10, W - 10]`, without the border that the window does not cover.
    """
    luminance, contrast_structure = _similarity(first, second, data_range)
    return luminance * contrast_structure


def _similarity(first: Tensor, second: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """The luminance term, and the term of contrast and structure."""
    distance = torch.arange(start=(1 - KERNEL) / 2, end=(1 + KERNEL) / 2, step=1)
    weights = torch.exp(-torch.pow(distance / SIGMA, 2) / 2)
    weights = weights / weights.sum()
    kernel = (weights[:, None] @ weights[None, :])[..., None] * weights
    images = (first, second, first * first, second * second, first * second)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        F.conv3d(image[None, None], kernel[None, None])[0, 0] for image in images
    )
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    variance_x, variance_y = mean_xx - mean_x * mean_x, mean_yy - mean_y * mean_y
    covariance = mean_xy - mean_x * mean_y
    contrast_structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), contrast_structure
