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


def ssim_map(first: Tensor, second: Tensor, data_range: float) -> Tensor:
    """Structural similarity around each voxel.

    Args:
        first: volume `[D, H, W]`.
        second: volume `[D, H, W]`.
        data_range: width of the intensity range.

    Returns:
        `[D - 10, H - 10, W - 10]`, without the border that the window does not cover.
    """
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
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)) * contrast_structure
