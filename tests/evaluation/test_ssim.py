"""The map of structural similarity is MONAI's."""

import pytest
import torch

from dualflow.evaluation.ssim import KERNEL, SIGMA, ssim_map


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
