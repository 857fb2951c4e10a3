"""Structural similarity is MONAI's, and over several scales that of the definition."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dualflow.evaluation.ssim import KERNEL, SIGMA, multi_scale_ssim, ssim_map


@pytest.mark.parametrize("data_range", [1.0, 2.0, 3.0])
def test_the_map_equals_monais_bit_by_bit(data_range):
    """On random volumes, and on equal ones."""
    from monai.metrics.regression import compute_ssim_and_cs

    first, second = torch.rand(2, 21, 24, 19, generator=torch.Generator().manual_seed(0))
    for other in (second, first):
        expected, _ = compute_ssim_and_cs(
            first[None, None], other[None, None], 3, (KERNEL,) * 3, (SIGMA,) * 3, data_range=data_range
        )
        assert torch.equal(ssim_map(first, other, data_range), expected[0, 0])


@pytest.mark.parametrize(("edge", "scales"), [(16, 1), (24, 2), (48, 3)])
def test_several_scales_agree_with_another_implementation(edge, scales):
    """With SciPy's filters, on as many scales as the window fits into."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.normal(size=(edge, edge + 8, edge)), 2) * 3 + 1
    pair = np.stack([truth, truth + 0.1 * rng.normal(size=truth.shape)]).astype(np.float32)
    mask = np.zeros(truth.shape, bool)
    mask[2:-2, 4:-2, 2:-4] = True
    images, weight, expected = pair.astype(float), mask.astype(float), 1.0
    exponents = np.array([0.0448, 0.2856, 0.3001])[:scales]
    for scale, exponent in enumerate(exponents / exponents.sum()):
        if scale:
            blocks = [(size // 2, 2) for size in weight.shape]
            shape = tuple(value for block in blocks for value in block)
            weight = weight.reshape(shape).mean(axis=(1, 3, 5))
            images = images.reshape(2, *shape).mean(axis=(2, 4, 6))
        x, y, xx, yy, xy = (
            gaussian_filter(image, SIGMA, mode="nearest", radius=KERNEL // 2)
            for image in (*images, images[0] ** 2, images[1] ** 2, images[0] * images[1])
        )
        c1, c2 = 0.02**2, 0.06**2
        value = (2 * (xy - x * y) + c2) / (xx - x**2 + yy - y**2 + c2)
        if scale == scales - 1:
            value = value * (2 * x * y + c1) / (x**2 + y**2 + c1)
        expected *= value[weight >= 0.5].mean() ** exponent
    tensors = (torch.from_numpy(image) for image in (*pair, mask))
    assert multi_scale_ssim(*tensors, data_range=2.0) == pytest.approx(expected, abs=1e-4)
