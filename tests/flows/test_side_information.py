"""Side information: tokens for unknown values, and the adversarial discriminator."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import ShapeError
from dualflow.flows.side_information import (
    SideDiscriminator,
    SideTokens,
    discriminator_error,
    known_side,
    side_values,
)


def test_side_values_are_unknown_where_none_are_given():
    """Values pass as they are, none become NaN, and another number of rows or columns is refused."""
    source, side = torch.zeros(2, 1, 4, 4, 4), torch.tensor([[1.0, torch.nan], [3.0, 4.0]])
    assert side_values(side, source, 2) is side
    assert side_values(None, source, 2).isnan().all()
    assert torch.equal(known_side(side, source, 2), torch.tensor([[1.0, 0.0, 1.0, 0.0], [3.0, 4.0, 1.0, 1.0]]))
    assert torch.equal(known_side(None, source, 2), torch.zeros(2, 4))
    for wrong in (side[:1], side[:, :1], side[0]):
        with pytest.raises(ShapeError, match="one row per volume"):
            side_values(wrong, source, 2)


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
