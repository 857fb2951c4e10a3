"""Every piece and every whole flow keeps the contract, fresh and after training has moved it."""

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
from flow_zoo import FLOWS, PIECES, batch, build
from safetensors.torch import load, save
from torch import Tensor

from dualflow.flows.bijection import Bijection
from dualflow.flows.model import DualFlow


def make(name: str, count: int = 2) -> tuple[Bijection, Tensor, Tensor | None]:
    torch.manual_seed(0)
    factory, size, context_size = PIECES[name]
    context = None if context_size is None else torch.randn(count, *context_size, dtype=torch.float64)
    return factory().double(), torch.randn(count, *size, dtype=torch.float64), context


def moved(name: str, count: int = 2) -> tuple[Bijection, Tensor, Tensor | None]:
    piece, x, context = make(name, count)
    piece.initialize(x, context)
    unsettle(piece, lambda: standard_nll(piece, x, context))
    return piece, x, context


def moved_flow(name: str) -> tuple[DualFlow, Tensor, Tensor, Tensor]:
    flow, (target, source, side) = build(name), batch()
    flow.initialize(target, source, side)
    unsettle(flow, lambda: flow(target, source, side)["loss"])
    return flow.eval(), target, source, side


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("state", [make, moved])
def test_piece_round_trip(name, state):
    """Inverse undoes forward to 1e-9 in float64 and 1e-4 in float32, and log-determinants cancel."""
    piece, x, context = state(name)
    check_round_trip(piece, x, context, 1e-9)
    check_round_trip(piece.float(), x.float(), None if context is None else context.float(), 1e-4)


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("state", [make, moved])
def test_piece_log_det(name, state):
    """The log-determinant is the Jacobian's, and samples of a batch do not mix."""
    check_log_det(*state(name))


@pytest.mark.parametrize("name", PIECES)
def test_piece_batch_and_gradients(name):
    """A batch of three equals three singles, and every parameter learns."""
    check_batch(*moved(name, count=3))
    piece, x, context = make(name)
    check_gradients(piece, lambda: standard_nll(piece, x, context))


@pytest.mark.parametrize("name", [name for name, (_, _, context) in PIECES.items() if context])
def test_piece_uses_its_own_context(name):
    """Changing one sample's context changes that sample's latent and no other's."""
    piece, x, context = moved(name)
    assert context is not None
    other = context.clone()
    other[0] += 1
    with torch.no_grad():
        z, changed = piece(x, context)[0], piece(x, other)[0]
    assert not torch.allclose(z[0], changed[0], atol=1e-6)
    torch.testing.assert_close(z[1], changed[1])


@pytest.mark.parametrize("name", FLOWS)
def test_flow_round_trip(name):
    """decode(encode(x)) = x in float64 and float32, fresh and trained."""
    fresh, (target, source, side) = build(name).eval(), batch()
    for flow in (fresh, moved_flow(name)[0]):
        with torch.no_grad():
            back = flow.decode(flow.encode(target, source, side)[0], source, side)
            torch.testing.assert_close(back, target, rtol=0, atol=1e-9)
            flow, narrow = flow.float(), [tensor.float() for tensor in (target, source, side)]
            back = flow.decode(flow.encode(*narrow)[0], *narrow[1:])
            torch.testing.assert_close(back, narrow[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_log_det(name):
    """The whole flow's log-determinant, residual scale included, is the Jacobian's."""
    flow, target, source, side = moved_flow(name)

    def flat(x: Tensor) -> Tensor:
        latents, _ = flow.encode(x[None], source[:1], side[:1])
        return torch.cat([z.flatten() for z in latents])

    jacobian = torch.autograd.functional.jacobian(flat, target[0])
    assert isinstance(jacobian, Tensor)
    expected = torch.linalg.slogdet(jacobian.flatten(1))[1]
    torch.testing.assert_close(flow.encode(target, source, side)[1][0].detach(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_batch(name):
    """log_prob of a batch of three equals that of three singles."""
    flow, *tensors = moved_flow(name)
    with torch.no_grad():
        together = flow.log_prob(*tensors)
        alone = torch.cat([flow.log_prob(*(tensor[i : i + 1] for tensor in tensors)) for i in range(3)])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_gradients(name):
    """Every trainable parameter has a gradient by the second step."""
    flow, (target, source, side) = build(name), batch()
    flow.initialize(target, source, side)
    check_gradients(flow, lambda: flow(target, source, side)["loss"])


@pytest.mark.parametrize("name", FLOWS)
def test_flow_uses_source_and_side(name):
    """After training, another source or other side information means another density."""
    flow, target, source, side = moved_flow(name)
    with torch.no_grad():
        density = flow.log_prob(target, source, side)
        assert ((flow.log_prob(target, source.flip(0), side) - density).abs()[[0, 2]] > 1e-3).all()
        assert ((flow.log_prob(target, source, side + 1) - density).abs() > 1e-4).all()
        assert ((flow.log_prob(target, source, None) - density).abs() > 1e-4).all()


@pytest.mark.parametrize("name", FLOWS)
def test_flow_restores_from_safetensors(name):
    """Weights survive safetensors bit by bit, into a model of another seed, and are not initialised again."""
    flow, target, source, side = moved_flow(name)
    twin = build(name, seed=9).eval()
    twin.load_state_dict(load(save(flow.state_dict())))
    with torch.no_grad():
        assert torch.equal(twin.log_prob(target, source, side), flow.log_prob(target, source, side))
    twin.initialize(2 * target, source, side)
    for key, value in flow.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), f"{key} was initialised a second time"


@pytest.mark.parametrize("name", FLOWS)
def test_flow_under_bfloat16(name):
    """Under bfloat16 autocast log_prob is float32 and near its float32 value, the round trip within bfloat16's step."""
    flow, *tensors = moved_flow(name)
    flow, (target, source, side) = flow.float(), [tensor.float() for tensor in tensors]
    with torch.no_grad():
        exact = flow.log_prob(target, source, side)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = flow.log_prob(target, source, side)
            back = flow.decode(flow.encode(target, source, side)[0], source, side)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded / target[0].numel(), exact / target[0].numel(), rtol=0.02, atol=0.05)
    torch.testing.assert_close(back, target, rtol=0, atol=4e-3)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_samples(name):
    """Samples are finite at every temperature and repeat with the generator's seed."""
    flow, _, source, side = moved_flow(name)
    for temperature in (0.0, 0.5, 1.0):
        draws = [
            flow.sample(source, side, n=4, temperature=temperature, generator=torch.Generator().manual_seed(seed))
            for seed in (5, 5, 6)
        ]
        assert draws[0].shape == (4, *source.shape)
        assert draws[0].isfinite().all()
        assert torch.equal(draws[0], draws[1])
        assert torch.equal(draws[0], draws[2]) == (temperature == 0)
        assert torch.allclose(draws[0][0], draws[0][1]) == (temperature == 0)
