"""Training of the source: pre-training before the flow, and freezing at its start."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import batch, build, build_spec, each_flow, small, terms, trained_objective

from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.objective import Batch
from dualflow.flows.source_objective import SourceObjective


def with_gradient(objective: FlowObjective) -> set[str]:
    """Return the parts of a flow (source, flow, priors, ...) with a nonzero gradient of one batch's loss."""
    objective.zero_grad()
    objective(Batch(*batch()))["loss"].backward()
    reached = [name for name, value in objective.flow.named_parameters() if value.grad is not None and value.grad.any()]
    return {name.split(".")[0] for name in reached}


@pytest.mark.xdist_group("srflow")
def test_a_frozen_source_does_not_learn():
    """No gradient reaches the source in the first `source_frozen` share of the training; afterwards one does."""
    objective = trained_objective("srflow").train()
    assert objective.flow.spec.source_frozen == 0.5
    for share in (0.0, 0.3, 0.4999):
        objective.set_progress(share)
        assert "flow" in with_gradient(objective)
        assert all(value.grad is None for value in objective.flow.source.parameters())
    for share in (0.5, 1.0):
        objective.set_progress(share)
        assert {"source", "flow"} <= with_gradient(objective)
    objective.eval().set_progress(0.0)
    assert "source" in with_gradient(objective)


@pytest.mark.xdist_group("srflow")
def test_freezing_does_not_change_the_loss():
    """The loss is the same number with a frozen and a trained source."""
    objective, tensors, losses = trained_objective("srflow").train(), batch(), []
    for share in (0.0, 1.0):
        objective.set_progress(share)
        torch.manual_seed(0)
        losses.append(objective(Batch(*tensors))["loss"])
    assert torch.equal(*losses)


@each_flow
def test_progress_does_not_change_the_loss(name):
    """Once the source is no longer frozen, the loss does not depend on the progress."""
    objective, tensors, losses = trained_objective(name).train(), batch(), []
    for share in (objective.flow.spec.source_frozen, 1.0):
        objective.set_progress(share)
        torch.manual_seed(0)
        losses.append(objective(Batch(*tensors))["loss"])
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", ["c_glow", "srflow", "puflow", "dualflow"])
def test_pretraining_changes_only_source_and_side_tokens(name):
    """Pre-training lowers the error of the predicted target and changes no other weight."""
    flow, (target, source, side) = build(name), batch(24)
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    objective = SourceObjective(flow).double()
    start = objective(Batch(target, source, side))["loss"].item()
    assert torch.equal(objective.point_estimate(source, side), flow.mean(source, side))
    optimiser = torch.optim.Adam(
        [value for value in objective.parameters() if value.requires_grad], lr=5e-3, fused=True
    )
    for _ in range(40):
        optimiser.zero_grad()
        objective(Batch(target, source, side))["loss"].backward()
        optimiser.step()
    assert objective.eval()(Batch(target, source, side))["loss"] < 0.6 * start
    changed = {key for key, value in flow.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("source.") for key in changed)
    assert all(key.startswith(("source.", "side_tokens.")) for key in changed)
    assert any(key.startswith("side_tokens.") for key in changed) == flow.spec.side_in_context
    assert objective.point_estimate(source, side).shape == target.shape


def test_pretraining_uses_the_mask_and_a_given_mean():
    """Its loss ignores voxels outside the mask; a cross-fitted mean replaces the model's."""
    objective, (target, source, side) = SourceObjective(build("dualflow")).double(), batch()
    inside = torch.zeros_like(target, dtype=torch.bool)
    inside[..., 0] = True
    loss = objective(Batch(target, source, side, inside))["loss"]
    torch.testing.assert_close(loss, objective(Batch(torch.where(inside, target, 99.0), source, side, inside))["loss"])
    assert objective(Batch(target, source, side, inside, mean=target))["loss"] == 0


def test_source_flow_is_initialised_from_noisy_sources():
    """The batch sets the actnorms of a source flow too, so its latents start with about unit variance."""
    flow, (target, source, side) = build("full_glow"), batch(32)
    assert not any(flag for name, flag in flow.named_buffers() if name.endswith("initialized"))
    initialize_flow(flow, Batch(target, source, side))
    assert all(flag for name, flag in flow.named_buffers() if name.endswith("initialized"))
    latents = flow.source(source).features
    assert all(0.5 < z.std() < 2 for z in latents)


def test_only_source_flows_get_source_noise():
    """The source of a source flow gets noise in training; an encoder reads the source unchanged."""
    tensors = batch()
    for name, same in (("c_glow", True), ("full_glow", False)):
        flow = build_spec(small(name, noise=0.0, side_dropout=0.0, source_noise=0.5))
        initialize_flow(flow, Batch(*tensors))
        # Output layers that start at zero would ignore the source.
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        assert torch.equal(terms(flow, *tensors)["nll"], terms(flow, *tensors)["nll"]) == same
