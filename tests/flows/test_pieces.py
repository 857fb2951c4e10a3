"""What single pieces promise beyond the shared contract."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

from dualflow.errors import ShapeError
from dualflow.flows.actnorm import ActNorm, ConditionalActNorm
from dualflow.flows.bijection import Bijection, Sequential
from dualflow.flows.coupling import Additive, Affine, Coupling
from dualflow.flows.level import Level, no_maps
from dualflow.flows.mixing import ConditionalTriangles, InvertibleMixing, random_rotations
from dualflow.flows.network import Conditioner, PooledHead
from dualflow.flows.presets import preset
from dualflow.flows.side_information import SideDiscriminator, SideTokens, discriminator_error
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


@pytest.mark.parametrize("channels", [2, 8, 32])
def test_conditional_matrices_are_well_conditioned_whatever_the_network_says(channels):
    """With weights a thousand times too large and contexts of any size, the condition number stays below 12."""
    torch.manual_seed(0)
    triangles = ConditionalTriangles(channels, 3).double()
    for scale in (1.0, 1e3):
        with torch.no_grad():
            for parameter in triangles.head.last.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
            matrices = responses(triangles, channels, scale * torch.randn(50, 3, 4, 4, 4).double())
        assert (torch.linalg.cond(matrices, p=torch.inf) < 12).all()
        assert (torch.linalg.det(matrices) > 0).all()
        assert torch.linalg.cond(matrices, p=torch.inf).max() > 1.2


def test_worst_conditional_matrix_inverts_in_float32():
    """Every entry at its bound, both ways: eight of them after each other still give the data back."""
    torch.manual_seed(0)
    stack = Sequential(ConditionalTriangles(8, 1) for _ in range(8))
    with torch.no_grad():
        for piece in stack.pieces:
            piece.head.last.bias.copy_(1e6 * torch.randn(64).sign())
        x, context = torch.randn(2, 8, 2, 2, 2), torch.randn(2, 1, 2, 2, 2)
        z, log_det = stack(x, context)
        back, negative = stack.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_det, -negative)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_conditional_matrices_are_per_person(count):
    """In batches of any size each person's matrix is the one that this person has alone, and its log-determinant."""
    torch.manual_seed(0)
    triangles = ConditionalTriangles(4, 3).double()
    torch.nn.init.normal_(triangles.head.last.weight)
    context = torch.randn(count, 3, 4, 4, 4).double()
    together = responses(triangles, 4, context)
    for person in range(count):
        alone = responses(triangles, 4, context[person : person + 1])[0]
        torch.testing.assert_close(together[person], alone)
        assert all(not torch.allclose(alone, together[other], atol=1e-3) for other in range(count) if other != person)
    log_det = triangles(torch.randn(count, 4, 3, 3, 3).double(), context)[1]
    torch.testing.assert_close(log_det, 27 * torch.linalg.slogdet(together)[1])


def responses(piece: Bijection, channels: int, context: Tensor) -> Tensor:
    """The matrices `[N, C, C]` that a linear piece multiplies channel vectors by."""
    columns = torch.eye(channels, dtype=context.dtype)[None, :, :, None, None].expand(len(context), -1, -1, -1, -1)
    return piece(columns, context)[0].flatten(2).detach()


def test_conditional_actnorm_starts_as_the_one_that_data_has_set():
    """Fresh, it standardises the batch like the plain one, whatever the source; its scale is bounded."""
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


def test_pooled_head_reads_the_whole_map():
    """Every voxel has a say in the pooled vector, which is zero at the start and not dead."""
    torch.manual_seed(0)
    head, x = PooledHead(2, 5), torch.randn(1, 2, 6, 4, 4, requires_grad=True)
    assert not head(x).any()
    head(x).sum().backward()
    assert head.last.weight.grad.abs().sum() > 0
    torch.nn.init.normal_(head.last.weight)
    (gradient,) = torch.autograd.grad(head(x).sum(), x)
    assert (gradient != 0).all()


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
    spec = preset("dualflow", levels=1, steps=[3], hidden=[4], transition_steps=2)
    level = Level(spec, 0, 1)
    torch.testing.assert_close(level(x, no_maps(spec)[0])[0], HaarSqueeze()(x)[0], rtol=0, atol=1e-5)


def test_affine_scale_is_bounded():
    """Whatever the network says, the scale stays within exp(+-bound)."""
    network = Conditioner(2, 4, 3)
    torch.nn.init.constant_(network.last.conv.bias, 1e6)
    x = torch.randn(1, 4, 2, 2, 2)
    _, log_det = Coupling(network, Affine(0.5))(x)
    assert log_det.item() == pytest.approx(0.5 * 2 * 8)


def test_bad_sizes_are_refused():
    """Odd grids and odd channels raise ShapeError with the size in the message."""
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\)"):
        Squeeze()(torch.zeros(1, 1, 3, 4, 4))
    with pytest.raises(ShapeError, match="7 channels"):
        HaarSqueeze().inverse(torch.zeros(1, 7, 2, 2, 2))
    with pytest.raises(ShapeError, match="got 3"):
        Coupling(Conditioner(1, 1, 2), Additive())(torch.zeros(1, 3, 2, 2, 2))


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
    error = discriminator_error(hunter(latent), side)
    error.backward()
    assert latent.grad is not None
    assert not latent.grad[0].any()
    with torch.no_grad():
        assert discriminator_error(hunter(latent - 0.1 * latent.grad), side) > error
        for parameter in hunter.parameters():
            parameter -= 0.01 * parameter.grad
        assert discriminator_error(hunter(latent), side) < error
    assert discriminator_error(hunter(latent), torch.full_like(side, torch.nan)) == 0
