"""Couplings: bounded scales and channel counts."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import ShapeError
from dualflow.flows.coupling import Additive, Affine, Coupling
from dualflow.flows.network import Conditioner


def test_affine_scale_is_bounded():
    """The scale stays within exp(+-bound) for any network output."""
    network = Conditioner(2, 4, 3)
    torch.nn.init.constant_(network.last.conv.bias, 1e6)
    x = torch.randn(1, 4, 2, 2, 2)
    _, log_det = Coupling(network, Affine(0.5))(x)
    assert log_det.item() == pytest.approx(0.5 * 2 * 8)


def test_odd_channels_are_refused():
    """An odd number of channels raises ShapeError with the number in the message."""
    with pytest.raises(ShapeError, match="got 3"):
        Coupling(Conditioner(1, 1, 2), Additive())(torch.zeros(1, 3, 2, 2, 2))
