"""Attention layers: the bijection contract, the receptive field, and the use of the context."""

from __future__ import annotations

import pytest
import torch
from bijection_contract import (
    check_batch,
    check_gradients,
    check_log_det,
    check_round_trip,
    standard_nll,
    unsettle,
)
from torch import Tensor

from dualflow.errors import ShapeError
from dualflow.flows.attention import (
    ATTENTIONS,
    GlobalScale,
    IMapAttention,
    ITransAttention,
    checkerboard,
    from_patches,
    to_patches,
)
from dualflow.flows.bijection import Bijection

NAMES = tuple(name for name in ATTENTIONS if name != "none")
CONTEXT = 3
SIZES = [(4, 1), (4, 2), (8, 1), (8, 2)]


def make(name: str, channels: int, patch: int, count: int = 2, steps: int = 0) -> tuple[Bijection, Tensor, Tensor]:
    """Return a layer in float64, untrained or after optimiser steps on correlated data with noise on every weight."""
    torch.manual_seed(0)
    piece = ATTENTIONS[name](channels, CONTEXT, patch).double()
    context = torch.randn(count, CONTEXT, 4, 4, 4, dtype=torch.float64)
    x = torch.randn(count, channels, 4, 4, 4, dtype=torch.float64) * (0.5 * context[:, :1]).exp()
    if steps:
        unsettle(piece, lambda: standard_nll(piece, x, context), steps)
    return piece, x, context


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "patch"), SIZES)
@pytest.mark.parametrize("steps", [0, 200])
def test_round_trip(name, channels, patch, steps):
    """Inverse undoes forward to 1e-10 in float64 and 1e-4 in float32, untrained and trained."""
    piece, x, context = make(name, channels, patch, steps=steps)
    check_round_trip(piece, x, context, 1e-10)
    check_round_trip(piece.float(), x.float(), context.float(), 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "patch"), SIZES)
def test_log_det(name, channels, patch):
    """The log-determinant equals that of the Jacobian for each sample."""
    check_log_det(*make(name, channels, patch, steps=3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("patch", [1, 2])
def test_batch_and_gradients(name, patch):
    """A batch equals its samples one by one, and every parameter gets a gradient, with and without context."""
    check_batch(*make(name, 4, patch, count=3, steps=3))
    piece, x, context = make(name, 4, patch)
    check_gradients(piece, lambda: standard_nll(piece, x, context))
    unconditional = ATTENTIONS[name](4, 0, patch).double()
    check_gradients(unconditional, lambda: standard_nll(unconditional, x, None))
    check_round_trip(unconditional, x, None, 1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("patch", [1, 2])
def test_receptive_field(name, patch):
    """A voxel in one corner depends on the data and the context in the opposite corner."""
    piece, x, context = make(name, 4, patch, count=1, steps=3)
    x.requires_grad_()
    context.requires_grad_()
    z, _ = piece(x, context)
    by_data, by_context = torch.autograd.grad(z[..., 0, 0, 0].square().sum(), (x, context))
    assert by_data[..., -1, -1, -1].abs().max() > 1e-7
    assert by_context[..., -1, -1, -1].abs().max() > 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_context_changes_the_log_det(name):
    """Setting one sample's context to zero changes the log-determinant of that sample only."""
    piece, x, context = make(name, 4, 2, steps=3)
    other = context.clone()
    other[0] = 0
    with torch.no_grad():
        change = piece(x, other)[1] - piece(x, context)[1]
    assert change[0].abs() > 1e-4
    assert change[1].abs() < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("patch", [1, 2])
def test_hard_attention_inverts(name, patch):
    """Logits a thousand times too large at the largest strength invert, with finite log-determinants."""
    piece, x, context = make(name, 4, patch, steps=3)
    with torch.no_grad():
        for key, parameter in piece.named_parameters():
            if "queries" in key:
                parameter *= 1e3**0.5
            if "raw" in key:
                parameter -= 1e6
    assert piece(x, context)[1].isfinite().all()
    check_round_trip(piece, x, context, 1e-10)
    check_round_trip(piece.float(), x.float(), context.float(), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_under_bfloat16(name):
    """Under autocast data and log-determinants stay float32; iTrans, a linear solve, stays exact."""
    piece, x, context = make(name, 4, 2, steps=3)
    piece, x, context = piece.float(), x.float(), context.float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_det = piece(x, context.bfloat16())
        back, _ = piece.inverse(z, context.bfloat16())
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4 if name == "itrans" else 4e-3 * x.abs().max().item())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_untrained_layers_are_the_identity(name):
    """Before training attention is the identity, with log-determinant 0."""
    piece, x, context = make(name, 4, 2)
    z, log_det = piece(x, context)
    assert torch.equal(z, x)
    assert not log_det.any()


def test_itrans_learns_to_shrink_a_common_offset():
    """Trained on data with a common offset, the strength becomes negative and the likelihood beats the identity's."""
    torch.manual_seed(0)
    piece = ATTENTIONS["itrans"](4, 0, 1)
    optimiser = torch.optim.Adam(piece.parameters(), lr=1e-2)

    def data(count: int) -> torch.Tensor:
        return (torch.randn(count, 4, 4, 4, 4) + torch.randn(count, 4, 1, 1, 1)) / 2**0.5

    for _ in range(100):
        optimiser.zero_grad()
        standard_nll(piece, data(16), None).backward()
        optimiser.step()
    x = data(256)
    identity = 0.5 * x.square().flatten(1).sum(1).mean() / x[0].numel()
    assert isinstance(piece, ITransAttention)
    assert (piece.raw_strength < 0).all()
    assert standard_nll(piece, x, None) < identity - 0.02


def test_imap_scales_half_of_the_entries_by_constants():
    """Half of each voxel's entries are scaled by a constant per channel, the other half by one factor per voxel."""
    piece, x, context = make("imap", 4, 2, steps=3)
    assert isinstance(piece, IMapAttention)
    ratio, mask = piece(x, context)[0].detach() / x, checkerboard(x)
    assert (mask.sum(0) == 2).all()
    for channel in range(4):
        constants = ratio[:, channel][:, mask[channel]]
        torch.testing.assert_close(constants, constants[:1, :1].expand_as(constants))
    free = ratio.movedim(1, -1)[:, ~mask.movedim(0, -1)].view(2, 64, 2)
    torch.testing.assert_close(free[..., 0], free[..., 1])
    assert free[..., 0].std() > 1e-3


def test_attention_has_no_fixed_places():
    """With patches of one voxel, mirrored data and context mirror the scales."""
    torch.manual_seed(0)
    network = GlobalScale(4, CONTEXT, 1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    x, context = torch.randn(2, 4, 4, 2, 6).double(), torch.randn(2, CONTEXT, 4, 2, 6).double()
    scales = network(x, context)
    assert scales.std() > 0.1
    for axis in (2, 3, 4):
        torch.testing.assert_close(network(x.flip(axis), context.flip(axis)), scales.flip(axis))


def test_itrans_mixes_whole_patches():
    """Adding a pattern to one patch of the second half changes all patches by multiples of that pattern."""
    piece, x, context = make("itrans", 4, 2, count=1, steps=3)
    assert isinstance(piece, ITransAttention)
    pattern = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    other = x.clone()
    other[0, 2:, :2, :2, :2] += pattern
    with torch.no_grad():
        moved = piece(other, context)[0] - piece(x, context)[0]
    assert not moved[:, :2].any()
    rows = to_patches(moved[:, 2:], 2, 2)
    ratio = rows / to_patches((other - x)[:, 2:], 2, 2)[:, :, :1]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-6, atol=1e-9)
    assert (ratio[:, :, 0] > 0).all()
    assert (ratio[:, 0] - ratio[:, 1]).abs().max() > 1e-6


def test_patches_are_cubes():
    """A row holds the voxels of one cube, and from_patches restores the tensor."""
    x = torch.randn(2, 4, 4, 8, 12)
    rows = to_patches(x, 2, 4)
    assert rows.shape == (2, 2, 6, 2 * 64)
    assert torch.equal(rows[0, 1, 4], x[0, 2:, :, 4:, 4:8].flatten())
    assert torch.equal(from_patches(rows, x.shape, 4), x)


@pytest.mark.parametrize("name", NAMES)
def test_bad_inputs_are_refused(name):
    """Grids that patches do not tile, and a missing context, raise ShapeError with the remedy."""
    layer = ATTENTIONS[name](4, 2, 4)
    with pytest.raises(ShapeError, match=r"\(8, 12, 6\).*pad it to \(8, 12, 8\), or choose attention: none"):
        layer(torch.zeros(1, 4, 8, 12, 6), torch.zeros(1, 2, 8, 12, 6))
    with pytest.raises(ShapeError, match="2 context channels and got no context"):
        layer(torch.zeros(1, 4, 4, 4, 4))


def test_itrans_refuses_too_many_tokens_and_odd_channels():
    """More than 4096 tokens are refused before their allocation; an odd number of channels is refused."""
    with pytest.raises(ShapeError, match=r"more than 4096; choose more levels"):
        ITransAttention(2, 0, 1)(torch.zeros(1, 2, 32, 32, 32))
    with pytest.raises(ShapeError, match="choose more levels"):
        ITransAttention(2, 0, 1)(torch.zeros(1, 2, 17, 17, 16))
    with pytest.raises(ShapeError, match="got 3"):
        ITransAttention(3, 0, 1)
