"""Every bijection and every flow passes the contract, untrained and trained."""

from __future__ import annotations

import pytest
import torch
from bijection_contract import (
    check_batch,
    check_gradients,
    check_log_det,
    check_round_trip,
    jacobian,
    standard_nll,
    unsettle,
)
from flow_zoo import BIN_WIDTH, FLOWS, PIECES, batch, build, choices, each_flow, objective_of, trained
from safetensors.torch import load, save
from torch import Tensor

from dualflow.flows import flow_objective as objective_module
from dualflow.flows import model as model_module
from dualflow.flows.bijection import Bijection
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.objective import Batch

each_piece = pytest.mark.parametrize("name", PIECES)


def make(name: str, count: int = 2) -> tuple[Bijection, Tensor, Tensor | None]:
    torch.manual_seed(0)
    factory, size, context_size = PIECES[name]
    context = None if context_size is None else torch.randn(count, *context_size, dtype=torch.float64)
    return factory().double(), torch.randn(count, *size, dtype=torch.float64), context


def moved(name: str, count: int = 2) -> tuple[Bijection, Tensor, Tensor | None]:
    """Initialise and unsettle a bijection on 16 samples; return it with the first `count`."""
    piece, x, context = make(name, 16)
    piece.initialize(x, context)
    unsettle(piece, lambda: standard_nll(piece, x, context))
    return piece, x[:count], None if context is None else context[:count]


each_state = pytest.mark.parametrize("state", [make, moved])
each_age = pytest.mark.parametrize("state", [build, trained], ids=["fresh", "trained"])


@pytest.mark.parametrize(
    ("field", "option"), [(name, option) for name, options in choices().items() for option in options]
)
def test_every_choice_is_in_some_flow(field, option):
    """The tested flows cover every row of every table."""
    assert any(getattr(spec, field) == option for spec in FLOWS.values())


@each_piece
@each_state
def test_piece_round_trip(name, state):
    """Inverse undoes forward to 1e-9 in float64 and 1e-4 in float32, and log-determinants cancel."""
    piece, x, context = state(name)
    check_round_trip(piece, x, context, 1e-9)
    check_round_trip(piece.float(), x.float(), None if context is None else context.float(), 1e-4)


@each_piece
@each_state
def test_piece_log_det(name, state):
    """The log-determinant equals the Jacobian's, and samples of a batch are independent."""
    check_log_det(*state(name))


@each_piece
def test_piece_batch_and_gradients(name):
    """A batch equals its samples one by one, and every parameter gets a gradient."""
    check_batch(*moved(name, count=3))
    piece, x, context = make(name)
    check_gradients(piece, lambda: standard_nll(piece, x, context))


@pytest.mark.parametrize("name", [name for name, (_, _, context) in PIECES.items() if context])
def test_piece_depends_on_the_context_of_each_sample(name):
    """Changing one sample's context changes that sample's latent alone."""
    piece, x, context = moved(name)
    assert context is not None
    changed_context = context.clone()
    changed_context[0] = torch.randn_like(changed_context[0])
    with torch.no_grad():
        z, changed_z = piece(x, context)[0], piece(x, changed_context)[0]
    assert not torch.allclose(z[0], changed_z[0], atol=1e-6)
    torch.testing.assert_close(z[1], changed_z[1])


@each_flow
@each_age
def test_flow_round_trip(name, state):
    """decode(encode(x)) = x to 1e-9 in float64 and 1e-4 in float32, and the two log-determinants cancel."""
    flow, (target, source, side) = state(name).eval(), batch()
    with torch.no_grad():
        torch.testing.assert_close(
            flow.decode(flow.encode(target, source, side)[0], source, side), target, rtol=0, atol=1e-9
        )
        maps = flow.condition(source, side).maps
        encoding = flow.flow.encode(target, maps)
        inverse_log_det = flow.flow.decode(lambda level, _: encoding.latents[level], maps)[1]
        torch.testing.assert_close(inverse_log_det, -encoding.log_det, rtol=1e-9, atol=1e-9)
        flow, (target, source, side) = flow.float(), [tensor.float() for tensor in (target, source, side)]
        recovered = flow.decode(flow.encode(target, source, side)[0], source, side)
        torch.testing.assert_close(recovered, target, rtol=0, atol=1e-4)


@each_flow
@each_age
def test_flow_log_det(name, state):
    """The flow's log-determinant, including the residual scale, equals the Jacobian's."""
    flow, (target, source, side) = state(name).eval(), batch(1, seed=5)

    def flat(x: Tensor) -> Tensor:
        latents, _ = flow.encode(x, source.expand_as(x), side.expand(len(x), -1))
        return torch.cat([z.flatten(1) for z in latents], dim=1)

    expected = torch.linalg.slogdet(jacobian(flat, target[0]))[1]
    torch.testing.assert_close(flow.encode(target, source, side)[1][0].detach(), expected, rtol=1e-6, atol=1e-9)


@each_flow
def test_flow_treats_samples_independently(name):
    """log_prob of a batch equals that of single samples, and has no gradient with respect to another sample."""
    flow, tensors = trained(name), batch()
    with torch.no_grad():
        batched = flow.log_prob(*tensors)
        single = torch.cat([flow.log_prob(*(tensor[i : i + 1] for tensor in tensors)) for i in range(3)])
    assert batched.shape == (3,)
    torch.testing.assert_close(batched, single, rtol=1e-9, atol=1e-9)
    target, source, side = (tensor.requires_grad_() for tensor in tensors)
    gradients = torch.autograd.grad(flow.log_prob(target, source, side)[1], (target, source, side))
    for gradient in gradients:
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


def hide_half(target: torch.Tensor) -> torch.Tensor:
    """Return which voxels are hidden, `[N, 1, D, H, W]`: those of the first half along the first axis."""
    hidden = torch.zeros_like(target[:, :1], dtype=torch.bool)
    hidden[:, :, : target.shape[2] // 2] = True
    return hidden


@each_flow
def test_flow_gradients(name, monkeypatch):
    """Every trainable parameter has a gradient by the second step.

    Random slabs often hide a whole scan, which teaches the interpolation nothing; here they hide one half.

    A source flow without a likelihood weight takes three steps, because its couplings and the heads that read its
    features both start at zero.
    """
    monkeypatch.setattr(objective_module, "random_slabs", lambda target, _: hide_half(target))
    flow, (target, source, side) = build(name), batch()
    initialize_flow(flow, Batch(target, source, side))
    late_source = flow.spec.has_source_density and not flow.spec.source_nll_weight
    objective = objective_of(flow)
    check_gradients(objective, lambda: objective(Batch(target, source, side))["loss"], by_step=3 if late_source else 2)


@each_flow
def test_flow_restores_from_safetensors(name):
    """Weights restored from safetensors are equal bit by bit, and are not initialised again."""
    flow, (target, source, side) = trained(name), batch()
    twin = build(name, seed=9).eval()
    twin.load_state_dict(load(save(flow.state_dict())))
    with torch.no_grad():
        assert torch.equal(twin.log_prob(target, source, side), flow.log_prob(target, source, side))
    initialize_flow(twin, Batch(2 * target, source, side))
    for key, value in flow.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), f"{key} was initialised a second time"


@each_flow
def test_flow_under_bfloat16(name):
    """Under bfloat16 autocast log_prob is float32 and close to its float32 value; the round trip holds to 1 %."""
    flow, (target, source, side) = trained(name).float(), [tensor.float() for tensor in batch()]
    with torch.no_grad():
        exact = flow.log_prob(target, source, side)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = flow.log_prob(target, source, side)
            recovered = flow.decode(flow.encode(target, source, side)[0], source, side)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded / target[0].numel(), exact / target[0].numel(), rtol=0.02, atol=0.05)
    torch.testing.assert_close(recovered, target, rtol=0, atol=0.01 * target.abs().max().item())


@each_flow
def test_flow_samples(name):
    """Samples are finite at every temperature, for true and shuffled sources, and repeat with the seed."""
    flow, (target, source, side) = trained(name), batch(4, seed=3)
    for temperature in (0.0, 0.5, 0.8, 1.0):
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 5, 6)]
        first, repeated, other = (
            flow.sample(source, side, n=4, temperature=temperature, generator=generator) for generator in generators
        )
        assert first.shape == (4, *target.shape)
        assert first.isfinite().all()
        assert first.abs().max() < 100
        assert torch.equal(first, repeated)
        assert torch.equal(first, other) == (temperature == 0)
        assert torch.allclose(first[0], first[1]) == (temperature == 0)
        shuffled = flow.sample(source.roll(1, 0), side, n=4, temperature=temperature, generator=generators[0])
        assert shuffled.isfinite().all()
        if flow.spec.dequantisation == "uniform":
            torch.testing.assert_close(first / BIN_WIDTH, (first / BIN_WIDTH).round())


@each_flow
def test_samples_do_not_depend_on_how_many_are_drawn_at_once(name, monkeypatch):
    """Several calls, and chunks of any size, give the samples of one call; a stream has no more than a chunk."""
    flow, (_, source, side) = trained(name), batch(2, seed=3)
    options = {"temperature": 0.8}
    expected = flow.sample(source, side, n=5, generator=torch.Generator().manual_seed(5), **options)
    for at_once in (1, 6):
        monkeypatch.setattr(model_module, "SAMPLES_AT_ONCE", at_once)
        chunks = list(flow.stream(source, side, n=5, generator=torch.Generator().manual_seed(5), **options))
        assert [len(chunk) for chunk in chunks] == ([1] * 5 if at_once == 1 else [3, 2])
        torch.testing.assert_close(torch.cat(chunks), expected)
    generator = torch.Generator().manual_seed(5)
    calls = [flow.sample(source, side, n=n, generator=generator, **options) for n in (2, 3)]
    torch.testing.assert_close(torch.cat(calls), expected)
