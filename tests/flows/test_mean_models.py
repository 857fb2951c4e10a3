"""Conditional means: the contract of every row of MEANS."""

from __future__ import annotations

import pytest
import torch
from regression_scans import SHAPE, SIDE

from dualflow.flows.mean_models import MEANS


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MEANS)
def test_every_mean_has_the_contract(name, channels):
    """A mean is one finite image, and its state dict restores it exactly."""
    torch.manual_seed(0)
    first, second = MEANS[name](SHAPE, SIDE, channels), MEANS[name](SHAPE, SIDE, channels)
    with torch.no_grad():
        for value in first.state_dict().values():
            value.copy_(torch.randn(value.shape))
    second.load_state_dict(first.state_dict())
    source, side = torch.rand(2, 2 * channels, *SHAPE), torch.tensor([[0.1, torch.nan], [torch.nan, torch.nan]])
    image = first(source, side)
    assert image.shape == (2, 1, *SHAPE)
    assert image.isfinite().all()
    assert torch.equal(image, second(source, side))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["local_linear", "stacked"])
def test_the_mean_is_zero_outside_the_brain(name, channels):
    """The mean is 0 where all sources are exactly 0, that is outside the brain mask."""
    mean = MEANS[name](SHAPE, SIDE, channels)
    with torch.no_grad():
        for value in mean.state_dict().values():
            value.fill_(0.3)
    source = torch.rand(1, 2 * channels, *SHAPE) + 0.1
    source[..., 2:4] = 0
    source[:, 1:, :, :, 6:] = 0  # a single source may be 0 inside the brain
    image = mean(source)
    assert not image[..., 2:4].any()
    assert image[..., 4:].abs().min() > 0
