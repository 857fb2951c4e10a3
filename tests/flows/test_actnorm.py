"""Actnorm: initialisation from data, bounded scales, source-dependent scales."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.actnorm import ActNorm, ConditionalActNorm


def test_actnorm_standardises_the_first_batch_only():
    """Each channel gets mean 0 and variance 1; a constant channel keeps its scale; a second call changes nothing."""
    torch.manual_seed(0)
    x = 3 + 5 * torch.randn(4, 3, 4, 4, 4, dtype=torch.float64)
    x[:, 2] = 7
    norm = ActNorm(3).double()
    z = norm.initialize(x)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    spread = z.std((0, 2, 3, 4))
    torch.testing.assert_close(spread, torch.tensor([1, 1, 0], dtype=torch.float64), rtol=0, atol=1e-3)
    assert norm.raw_log_scale[2] == 0
    torch.testing.assert_close(norm.initialize(x), z)
    doubled = norm(2 * x)[0]
    torch.testing.assert_close(norm.initialize(2 * x), doubled)


def test_conditional_actnorm_starts_as_a_plain_actnorm():
    """Before training it standardises the batch like a plain actnorm, for any source; its scale is bounded."""
    torch.manual_seed(0)
    norm, x, context = (
        ConditionalActNorm(3, 2).double(),
        3 + 5 * torch.randn(4, 3, 4, 4, 4).double(),
        torch.rand(4, 2, 4, 4, 4).double(),
    )
    z = norm.initialize(x, context)
    torch.testing.assert_close(z, ActNorm(3).double().initialize(x))
    torch.nn.init.constant_(norm.head.last.bias, 1e6)
    assert norm(x, context)[1].tolist() == pytest.approx([6 * 3 * 64] * 4)
