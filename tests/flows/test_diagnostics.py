"""Explained variance of latents under a flow's prior, and the cycles of both flows."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import batch, build, build_spec, each_flow, flows_with, objective_of, parametrize_flows, small, trained

from dualflow.flows.diagnostics import explained_variance, round_trip_error, source_round_trip_error
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.objective import Batch


@each_flow
def test_an_untrained_prior_explains_nothing(name):
    """An untrained prior has mean 0, so it explains none of the variance of the centred latents."""
    flow, (target, source, side) = build(name), batch(32)
    initialize_flow(flow, Batch(target, source, side))
    shares = explained_variance(flow.eval(), target, source, side)
    assert shares.shape == (flow.spec.levels,)
    assert not shares.requires_grad
    assert (shares < 1e-6).all()
    assert (shares > -0.2).all()


def test_a_deterministic_relation_is_fully_explained():
    """With target = source, equal flows and an identity relation, the share is 1 at every level."""
    flow, (_, source, side) = build_spec(small("dual_glow")).eval(), batch(8)
    initialize_flow(flow, Batch(source, source, side))
    flow.source.flow.load_state_dict(flow.flow.state_dict())
    with torch.no_grad():
        for prior, channels in zip(flow.priors, flow.source.channels, strict=True):
            conv = prior.moments.conv
            centre = conv.conv.weight[:, :, 2, 2, 2]
            centre.copy_(torch.eye(channels) / conv.gain)
    shares = explained_variance(flow, source, source, side)
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-9)
    with torch.no_grad():
        for prior in flow.priors:
            prior.moments.conv.conv.weight.mul_(0.5)
    halves = explained_variance(flow, source, source, side)
    assert ((halves > 0.6) & (halves < 0.8)).all()


@pytest.mark.xdist_group("dual_glow")
def test_a_trained_prior_explains_latents_of_new_subjects():
    """The relation prior of DUAL-GLOW explains over 30 % at the coarsest level, and less with shuffled sources."""
    flow, (target, source, side) = trained("dual_glow"), batch(32, seed=7)
    assert explained_variance(flow, target, source, side)[-1] > 0.3
    shuffled = explained_variance(flow, target, source.roll(1, 0), side)
    assert (shuffled < explained_variance(flow, target, source, side)).all()


@parametrize_flows(flows_with(source="glow"))
def test_cycles_close_and_carry_no_gradient(name):
    """Target and source return from their latents; the L1 of either cycle has no gradient, unlike that of a sample."""
    flow, (target, source, side) = trained(name), batch()
    assert round_trip_error(flow, target, source, side) < 1e-9
    assert source_round_trip_error(flow.source, source) < 1e-9
    condition = flow.condition(source, side)
    code, own = flow.encoding(target, condition), flow.source.flow.encode(source, flow.source.no_maps)
    cycles = {
        "target": (flow.decode_latents(lambda level, _: code.latents[level], condition) - target).sum(),
        "source": flow.source.flow.decode(lambda level, _: own.latents[level], flow.source.no_maps)[0].sum(),
        "sample": (flow.draw(condition, 0.5, torch.Generator().manual_seed(0)) - target).sum(),
    }
    parameters = [*flow.flow.parameters(), *flow.source.parameters()]
    sizes = {}
    for kind, value in cycles.items():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        sizes[kind] = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
    assert max(sizes["target"], sizes["source"]) < 1e-6
    assert sizes["sample"] > 1e-2


@pytest.mark.xdist_group("c_flow")
@pytest.mark.slow
def test_both_cycles_are_monitored():
    """Diagnostics on request hold the round trip of the target and, for a Glow source, that of the source."""
    target, source, side = batch()
    scans = Batch(target, source, side, torch.ones_like(target, dtype=torch.bool))
    both = {"round_trip", "source_round_trip"}
    for name, names in (("c_flow", both), ("dualflow", both), ("srflow", {"round_trip"})):
        numbers = objective_of(build(name)).diagnostics(scans, round_trip=True)
        assert {key for key in numbers if "round_trip" in key} == names
        assert max(numbers[key] for key in names) < 1e-9
