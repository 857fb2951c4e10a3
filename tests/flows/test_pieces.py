"""What single pieces promise beyond the shared contract."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from dualflow.errors import ShapeError
from dualflow.flows.actnorm import ActNorm
from dualflow.flows.bijection import Sequential
from dualflow.flows.coupling import AdditiveCoupling, AffineCoupling
from dualflow.flows.mixing import InvertibleMixing, random_rotations
from dualflow.flows.multiscale import Level
from dualflow.flows.network import Conditioner
from dualflow.flows.presets import preset
from dualflow.flows.side import SideDiscriminator, SideTokens
from dualflow.flows.squeeze import HaarSqueeze, Squeeze


def test_actnorm_standardises_the_first_batch_only():
    """Each channel becomes zero-mean, unit-variance; a constant one keeps its scale; a second call changes nothing."""
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
    torch.testing.assert_close(norm.initialize(2 * x), norm(2 * x)[0])


def test_mixing_starts_at_its_rotation_and_stays_invertible():
    """The LU form reproduces the rotation, and even absurd weights leave a finite log-determinant."""
    torch.manual_seed(0)
    rotation = random_rotations(64, 1, closing=False)[0]
    mixing, x = InvertibleMixing(rotation), torch.randn(1, 64, 2, 2, 2)
    torch.testing.assert_close(mixing(x)[0].flatten(2), rotation @ x.flatten(2), rtol=0, atol=1e-3)
    with torch.no_grad():
        mixing.raw_log_diagonal.fill_(-1e6)
    assert mixing(x)[1].item() == pytest.approx(-5 * 64 * 8)


def test_wide_mixing_stays_well_conditioned():
    """A stack of sixteen 128-channel mixings whose every entry has moved by 0.05 still inverts in float32."""
    torch.manual_seed(0)
    stack = Sequential(InvertibleMixing(rotation) for rotation in random_rotations(128, 16, closing=False))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        x = torch.randn(1, 128, 2, 2, 2)
        back, _ = stack.inverse(stack(x)[0])
    torch.testing.assert_close(back, x, rtol=0, atol=2e-3)


def test_closing_rotations_cancel():
    """The product of a closed set is the identity."""
    product = torch.eye(16)
    for rotation in random_rotations(16, 3, closing=True):
        product = rotation @ product
    torch.testing.assert_close(product, torch.eye(16), rtol=0, atol=1e-5)


def test_haar_puts_the_low_pass_first():
    """Of two constant channels only the first two bands are not zero, and energy is kept."""
    x = torch.ones(1, 2, 4, 4, 4) * torch.tensor([1.0, 2.0])[None, :, None, None, None]
    z, _ = HaarSqueeze()(x)
    torch.testing.assert_close(z[0, :2, 0, 0, 0], sqrt(8) * torch.tensor([1.0, 2.0]))
    assert not z[:, 2:].any()
    noise = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(HaarSqueeze()(noise)[0].square().sum(), noise.square().sum())


def test_untrained_haar_level_keeps_band_order():
    """Before training a Haar level is the Haar transform, so that its split sends off detail bands."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 4, 4)
    level = Level(preset("dualflow", levels=1, steps=[3], hidden=[4]), 0, 1)
    torch.testing.assert_close(level(x)[0], HaarSqueeze()(x)[0], rtol=0, atol=1e-5)


def test_affine_scale_is_bounded():
    """Whatever the network says, the scale stays within exp(+-bound)."""
    network = Conditioner(2, 4, 3)
    torch.nn.init.constant_(network.last.conv.bias, 1e6)
    x = torch.randn(1, 4, 2, 2, 2)
    _, log_det = AffineCoupling(network, 0.5)(x)
    assert log_det.item() == pytest.approx(0.5 * 2 * 8)


def test_bad_sizes_are_refused():
    """Odd grids and odd channels raise ShapeError with the size in the message."""
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\)"):
        Squeeze()(torch.zeros(1, 1, 3, 4, 4))
    with pytest.raises(ShapeError, match="7 channels"):
        HaarSqueeze().inverse(torch.zeros(1, 7, 2, 2, 2))
    with pytest.raises(ShapeError, match="got 3"):
        AdditiveCoupling(Conditioner(1, 1, 2))(torch.zeros(1, 3, 2, 2, 2))


def test_side_tokens_stand_for_unknown_values():
    """NaN gives the token's embedding; known values pass; in training some of them are hidden."""
    torch.manual_seed(0)
    tokens = SideTokens(2, 4, dropout=0.2).eval()
    with torch.no_grad():
        tokens.token.copy_(torch.tensor([5.0, 6.0]))
    side = torch.tensor([[1.0, torch.nan]])
    assert torch.equal(tokens.filled(side), torch.tensor([[1.0, 6.0]]))
    hidden = (tokens.train().filled(torch.ones(5000, 2)) != 1).float()
    assert hidden.mean().item() == pytest.approx(1 - 0.8**2, abs=0.03)
    assert hidden.all(1).float().mean().item() == pytest.approx(0.2 + 0.8 * 0.2**2, abs=0.03)


def test_gradient_reversal_works_against_the_discriminator():
    """One descent step lowers the discriminator's error through its weights and raises it through the latent."""
    torch.manual_seed(0)
    hunter, latent, side = (
        SideDiscriminator(4, 2).double(),
        torch.randn(8, 4, 3, 3, 3).double(),
        torch.randn(8, 2).double(),
    )
    side[0] = torch.nan
    latent.requires_grad_()
    error = hunter(latent, side)
    error.backward()
    assert latent.grad is not None
    assert not latent.grad[0].any()
    with torch.no_grad():
        assert hunter(latent - 0.1 * latent.grad, side) > error
        for parameter in hunter.parameters():
            parameter -= 0.01 * parameter.grad
        assert hunter(latent, side) < error
    assert hunter(latent, torch.full_like(side, torch.nan)) == 0
