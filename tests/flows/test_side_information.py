"""Side information: tokens for unknown values, and the adversarial discriminator."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.side_information import SideDiscriminator, SideTokens, discriminator_error


def test_side_tokens_replace_unknown_values():
    """Tokens replace NaN and leave known values; training hides some known values."""
    torch.manual_seed(0)
    tokens = SideTokens(2, 4, dropout=0.2).eval()
    with torch.no_grad():
        tokens.token.copy_(torch.tensor([5.0, 6.0]))
    side = torch.tensor([[1.0, torch.nan]])
    assert torch.equal(tokens.filled(side), torch.tensor([[1.0, 6.0]]))
    assert torch.equal(tokens.filled(torch.tensor([[1, 2]])), torch.tensor([[1.0, 2.0]]))  # numbers of another type
    hidden = (tokens.train().filled(torch.ones(5000, 2)) != 1).float()
    assert hidden.mean().item() == pytest.approx(1 - 0.8**2, abs=0.03)
    assert hidden.all(1).float().mean().item() == pytest.approx(0.2 + 0.8 * 0.2**2, abs=0.03)


def test_gradient_reversal_works_against_the_discriminator():
    """One descent step lowers the discriminator's error through its weights and raises it through the latent."""
    torch.manual_seed(0)
    discriminator, latent, side = (
        SideDiscriminator(4, 2).double(),
        torch.randn(8, 4, 3, 3, 3).double(),
        torch.randn(8, 2).double(),
    )
    side[0] = torch.nan
    latent.requires_grad_()
    error = discriminator_error(discriminator(latent), side)
    error.backward()
    assert latent.grad is not None
    assert not latent.grad[0].any()
    with torch.no_grad():
        assert discriminator_error(discriminator(latent - 0.1 * latent.grad), side) > error
        for parameter in discriminator.parameters():
            parameter -= 0.01 * parameter.grad
        assert discriminator_error(discriminator(latent), side) < error
    assert discriminator_error(discriminator(latent), torch.full_like(side, torch.nan)) == 0
