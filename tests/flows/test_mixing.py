"""1x1x1 mixing: rotations, conditioning, and matrices per sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dualflow.flows.bijection import Bijection, Sequential
from dualflow.flows.mixing import ConditionalTriangles, InvertibleMixing, random_rotations


def test_mixing_starts_as_its_rotation_and_stays_invertible():
    """The LU form equals the rotation, and extreme weights give a finite log-determinant."""
    torch.manual_seed(0)
    rotation = random_rotations(64, 1, closing=False)[0]
    mixing, x = InvertibleMixing(rotation), torch.randn(1, 64, 2, 2, 2)
    torch.testing.assert_close(mixing(x)[0].flatten(2), rotation @ x.flatten(2), rtol=0, atol=1e-3)
    with torch.no_grad():
        mixing.raw_log_diagonal.fill_(-1e6)
    assert mixing(x)[1].item() == pytest.approx(-5 * 64 * 8)


def test_wide_mixing_stays_well_conditioned():
    """Sixteen 128-channel mixings, all entries moved by about 0.05, invert in float32."""
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


@pytest.mark.parametrize("channels", [2, 8, 32])
def test_conditional_matrices_are_well_conditioned_for_any_weights(channels):
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
    """Eight matrices in sequence, with all entries at their bounds, recover the data."""
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
def test_conditional_matrices_are_per_sample(count):
    """In batches of any size each sample's matrix and log-determinant equal those of the sample alone."""
    torch.manual_seed(0)
    triangles = ConditionalTriangles(4, 3).double()
    torch.nn.init.normal_(triangles.head.last.weight)
    context = torch.randn(count, 3, 4, 4, 4).double()
    together = responses(triangles, 4, context)
    for index in range(count):
        alone = responses(triangles, 4, context[index : index + 1])[0]
        torch.testing.assert_close(together[index], alone)
        assert all(not torch.allclose(alone, together[other], atol=1e-3) for other in range(count) if other != index)
    log_det = triangles(torch.randn(count, 4, 3, 3, 3).double(), context)[1]
    torch.testing.assert_close(log_det, 27 * torch.linalg.slogdet(together)[1])


def responses(piece: Bijection, channels: int, context: Tensor) -> Tensor:
    """Return the matrices `[N, C, C]` of a bijection that is linear in the channels."""
    columns = torch.eye(channels, dtype=context.dtype)[None, :, :, None, None].expand(len(context), -1, -1, -1, -1)
    return piece(columns, context)[0].flatten(2).detach()
