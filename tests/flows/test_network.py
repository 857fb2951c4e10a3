"""Network layers against torch's own, in both memory formats."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dualflow.flows.network import (
    Conditioner,
    Convolution,
    PooledHead,
    UnitRMS,
    VolumeNorm,
    channels_last,
    to_data_format,
)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("depth", [2, 5, 6])
def test_convolution_equals_torch(count, kernel, stride, depth):
    """Values and gradients equal conv3d's, for a single volume (which is split in two) and for a batch."""
    torch.manual_seed(0)
    layer = Convolution(3, 4, kernel, stride=stride).double()
    results = []
    for convolve in (layer, lambda x: F.conv3d(x, layer.weight, layer.bias, stride, kernel // 2)):
        x = torch.randn(count, 3, depth, 7, 6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        out = convolve(x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        results.append((out, *torch.autograd.grad((out * weights).sum(), (x, layer.weight, layer.bias))))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_unit_rms_gradient(layout):
    """The custom backward pass agrees with finite differences in float64, and the values with the formula."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 4, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(UnitRMS.apply, (x,))
    torch.testing.assert_close(UnitRMS.apply(x), x / (x.square().mean(1, keepdim=True) + UnitRMS.EPSILON).sqrt())


def test_unit_rms_in_bfloat16():
    """Values and gradients agree with float32 within the precision of bfloat16."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(2, 16, 4, 4, 4)).requires_grad_()
    weights = torch.randn_like(x)
    (exact,) = torch.autograd.grad((UnitRMS.apply(x) * weights).sum(), x)
    (rounded,) = torch.autograd.grad((UnitRMS.apply(x.bfloat16()) * weights.bfloat16()).sum(), x)
    assert (rounded - exact).norm() < 0.01 * exact.norm()
    torch.testing.assert_close(UnitRMS.apply(x.bfloat16()).float(), UnitRMS.apply(x), rtol=0.02, atol=0.02)


def test_volume_norm_equals_torch_group_norm():
    """It has the names and values of torch's GroupNorm in channels-last format."""
    actual, expected = VolumeNorm(6, 2), nn.GroupNorm(2, 6)
    actual.load_state_dict(expected.state_dict())
    x = channels_last(torch.randn(2, 6, 4, 4, 4))
    torch.testing.assert_close(actual(x), expected(x))


def test_to_data_format():
    """A network's output gets the data's type and a contiguous memory format."""
    data = torch.randn(2, 8, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Conditioner(8, 4, 6)(data)
    assert out.dtype == torch.bfloat16
    converted = to_data_format(out, data)
    assert converted.dtype == torch.float32
    assert converted.is_contiguous()


def test_pooled_head_reads_the_whole_map():
    """Every voxel has a gradient; the output starts at zero and its last layer has a gradient."""
    torch.manual_seed(0)
    head, x = PooledHead(2, 5), torch.randn(1, 2, 6, 4, 4, requires_grad=True)
    assert not head(x).any()
    head(x).sum().backward()
    assert head.last.weight.grad.abs().sum() > 0
    torch.nn.init.normal_(head.last.weight)
    (gradient,) = torch.autograd.grad(head(x).sum(), x)
    assert (gradient != 0).all()
