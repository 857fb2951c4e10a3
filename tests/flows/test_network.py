"""The layers of networks compute what their plain counterparts do, however they lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dualflow.flows.network import Conditioner, Convolution, UnitRMS, VolumeNorm, channels_last, to_data_format


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("depth", [2, 5, 6])
def test_a_convolution_is_torchs(count, kernel, stride, depth):
    """Values and gradients are conv3d's, for a volume alone, which is cut in two, as for several."""
    torch.manual_seed(0)
    layer = Convolution(3, 4, kernel, stride=stride).double()
    found = []
    for convolve in (layer, lambda x: F.conv3d(x, layer.weight, layer.bias, stride, kernel // 2)):
        x = torch.randn(count, 3, depth, 7, 6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        out = convolve(x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append((out, *torch.autograd.grad((out * weights).sum(), (x, layer.weight, layer.bias))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_unit_rms_has_the_gradient_of_its_formula(layout):
    """Its own backward against autograd's, in float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 4, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(UnitRMS.apply, (x,))
    torch.testing.assert_close(UnitRMS.apply(x), x / (x.square().mean(1, keepdim=True) + UnitRMS.EPSILON).sqrt())


def test_unit_rms_in_bfloat16_is_the_rounded_one():
    """Values and gradients are those of float32 up to what bfloat16 can hold."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(2, 16, 4, 4, 4)).requires_grad_()
    weights = torch.randn_like(x)
    (wide,) = torch.autograd.grad((UnitRMS.apply(x) * weights).sum(), x)
    (narrow,) = torch.autograd.grad((UnitRMS.apply(x.bfloat16()) * weights.bfloat16()).sum(), x)
    assert (narrow - wide).norm() < 0.01 * wide.norm()
    torch.testing.assert_close(UnitRMS.apply(x.bfloat16()).float(), UnitRMS.apply(x), rtol=0.02, atol=0.02)


def test_a_volume_norm_is_torchs_group_norm():
    """Same names in a checkpoint, same values whatever the layout."""
    ours, theirs = VolumeNorm(6, 2), nn.GroupNorm(2, 6)
    ours.load_state_dict(theirs.state_dict())
    x = channels_last(torch.randn(2, 6, 4, 4, 4))
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_network_hands_back_what_the_flow_works_on():
    """Channel by channel, in the number format of the data."""
    data = torch.randn(2, 8, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Conditioner(8, 4, 6)(data)
    assert out.dtype == torch.bfloat16
    back = to_data_format(out, data)
    assert back.dtype == torch.float32
    assert back.is_contiguous()
