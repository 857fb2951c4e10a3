"""Squeezes: band order, energy, and sizes that cannot be squeezed."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from dualflow.errors import ShapeError
from dualflow.flows.squeeze import HaarSqueeze, Squeeze


def test_haar_puts_the_low_pass_band_first():
    """Two constant channels give nonzero values in the first two bands only, and energy is preserved."""
    x = torch.ones(1, 2, 4, 4, 4) * torch.tensor([1.0, 2.0])[None, :, None, None, None]
    z, _ = HaarSqueeze()(x)
    torch.testing.assert_close(z[0, :2, 0, 0, 0], sqrt(8) * torch.tensor([1.0, 2.0]))
    assert not z[:, 2:].any()
    noise = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(HaarSqueeze()(noise)[0].square().sum(), noise.square().sum())


def test_odd_sizes_are_refused():
    """Odd grids, and channels that are no multiple of eight, raise ShapeError with the size in the message."""
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\)"):
        Squeeze()(torch.zeros(1, 1, 3, 4, 4))
    with pytest.raises(ShapeError, match="7 channels"):
        HaarSqueeze().inverse(torch.zeros(1, 7, 2, 2, 2))
