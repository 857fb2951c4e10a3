"""1x1x1 mixing: rotations, conditioning, and matrices per sample."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from dualflow.flows.bijection import Bijection, Sequential, soft_bound_inverse
from dualflow.flows.mixing import (
    ANGLE_BOUND,
    LOG_SINGULAR_BOUND,
    ConditionalMatrix,
    InvertibleMixing,
    random_rotations,
)


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
    """With weights a thousand times too large and contexts of any size, log singular values stay within 1.5."""
    torch.manual_seed(0)
    piece = ConditionalMatrix(channels, 3).double()
    for scale in (1.0, 1e3):
        with torch.no_grad():
            for parameter in piece.head.last.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
            matrices = responses(piece, channels, scale * torch.randn(50, 3, 4, 4, 4).double())
        log_values = torch.linalg.svdvals(matrices).log()
        assert (log_values.abs() < 1.5 + 1e-9).all()
        assert log_values.abs().max() > 1
        assert (torch.linalg.det(matrices) > 0).all()


@pytest.mark.parametrize("channels", [2, 8, 32])
def test_conditional_matrices_reach_any_matrix(channels):
    """Random matrices of positive determinant have parameters, as does -I, the farthest rotation from the identity."""
    torch.manual_seed(0)
    piece, context = ConditionalMatrix(channels, 3).double(), torch.randn(1, 3, 4, 4, 4).double()
    for _ in range(5):
        stretch = torch.diag((2 * torch.rand(channels, dtype=torch.float64) - 1).exp())
        target = rotation_of(channels) @ stretch @ rotation_of(channels)
        set_matrix(piece, target)
        torch.testing.assert_close(responses(piece, channels, context)[0], target, rtol=0, atol=1e-6)
    quarter_turns = torch.zeros(channels, channels, dtype=torch.float64)
    quarter_turns[1::2, ::2] = torch.eye(channels // 2)
    with torch.no_grad():
        piece.head.last.bias.copy_(soft_bound_inverse(4 * quarter_turns, ANGLE_BOUND).flatten() / piece.gain)
    half_turn = -torch.eye(channels, dtype=torch.float64)
    torch.testing.assert_close(responses(piece, channels, context)[0], half_turn, rtol=0, atol=1e-9)


def test_conditional_matrices_learn_far_targets():
    """Adam on the network turns one matrix into two far ones, one for each of two contexts."""
    torch.manual_seed(0)
    piece, context = ConditionalMatrix(8, 3), torch.randn(2, 3, 4, 4, 4)
    targets = torch.stack([rotation_of(8), rotation_of(8)]).float()
    columns = torch.eye(8)[None, :, :, None, None].expand(2, -1, -1, -1, -1)
    optimiser = torch.optim.Adam(piece.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        error = (piece(columns, context)[0].flatten(2) - targets).square().sum((1, 2))
        error.sum().backward()
        optimiser.step()
    assert (error < 0.01 * 8).all()


def test_worst_conditional_matrices_invert_in_float32():
    """Three matrices in sequence, with all entries and singular values at their bounds, recover the data."""
    torch.manual_seed(0)
    stack = Sequential(ConditionalMatrix(8, 1) for _ in range(3))
    with torch.no_grad():
        for piece in stack.pieces:
            piece.head.last.bias.copy_(1e6 * torch.randn(64).sign())
        x, context = torch.randn(2, 8, 2, 2, 2), torch.randn(2, 1, 2, 2, 2)
        z, log_det = stack(x, context)
        back, negative = stack.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)
    torch.testing.assert_close(log_det, -negative)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_conditional_matrices_are_per_sample(count):
    """In batches of any size each sample's matrix and log-determinant equal those of the sample alone."""
    torch.manual_seed(0)
    piece = ConditionalMatrix(4, 3).double()
    torch.nn.init.normal_(piece.head.last.weight)
    context = torch.randn(count, 3, 4, 4, 4).double()
    together = responses(piece, 4, context)
    for index in range(count):
        alone = responses(piece, 4, context[index : index + 1])[0]
        torch.testing.assert_close(together[index], alone)
        assert all(not torch.allclose(alone, together[other], atol=1e-3) for other in range(count) if other != index)
    log_det = piece(torch.randn(count, 4, 3, 3, 3).double(), context)[1]
    torch.testing.assert_close(log_det, 27 * torch.linalg.slogdet(together)[1])


def rotation_of(channels: int) -> Tensor:
    """Draw a random rotation `[C, C]`."""
    rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
    rotation[0] *= torch.linalg.det(rotation).sign()
    return rotation


def set_matrix(piece: ConditionalMatrix, matrix: Tensor) -> None:
    """Set the bias of the network's last layer so that the piece multiplies by a matrix of positive determinant."""
    left, values, right = torch.linalg.svd(matrix)
    flip = torch.ones_like(values)
    flip[0] = torch.linalg.det(left).sign()
    left, right = left * flip, flip[:, None] * right
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    roots = [torch.from_numpy(sqrtm(rotation.numpy()).real) for rotation in (left, right)]
    skews = [torch.linalg.solve(identity + root, identity - root) for root in roots]
    raw = [soft_bound_inverse(4 * skew, ANGLE_BOUND) / piece.gain for skew in skews]
    diagonal = soft_bound_inverse(values.log(), LOG_SINGULAR_BOUND)
    with torch.no_grad():
        piece.head.last.bias.copy_((raw[0].tril(-1) + torch.diag(diagonal) + raw[1].triu(1)).flatten())


def responses(piece: Bijection, channels: int, context: Tensor) -> Tensor:
    """Return the matrices `[N, C, C]` of a bijection that is linear in the channels."""
    columns = torch.eye(channels, dtype=context.dtype)[None, :, :, None, None].expand(len(context), -1, -1, -1, -1)
    return piece(columns, context)[0].flatten(2).detach()
