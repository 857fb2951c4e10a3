"""Memory modes change which activations are stored, but neither losses nor gradients."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import batch, build, each_flow, objective_of, small, trained_objective
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from dualflow.errors import DriftError
from dualflow.flows.bijection import Bijection
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.level import Level
from dualflow.flows.memory import BoundPiece, run_chain, set_memory, without_drift_check
from dualflow.flows.model import DualFlow
from dualflow.flows.network import Convolution
from dualflow.flows.objective import Batch
from dualflow.flows.presets import PRESETS, preset

MODES = ["checkpoint", "reversible"]
each_mode = pytest.mark.parametrize("mode", MODES)


def gradients(objective, inputs, mode, *, bfloat16=False):
    """Return loss and gradients of one training step."""
    set_memory(objective, mode)
    objective.train().zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = objective(Batch(*inputs))["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def largest_error(expected, actual):
    """Return the largest relative error of a gradient."""
    assert actual.keys() == expected.keys()
    whole = torch.stack([value.norm() for value in expected.values()]).norm()
    return max(float((actual[k] - v).norm() / (v.norm() + 1e-9 * whole)) for k, v in expected.items())


@each_flow
@each_mode
def test_gradients_are_those_of_the_stored_mode(name, mode):
    """The gradient of every parameter of a trained flow agrees to 1e-8 in float64 and 1e-3 in float32."""
    objective, inputs = trained_objective(name), batch()
    loss, expected = gradients(objective, inputs, "stored")
    mode_loss, actual = gradients(objective, inputs, mode)
    torch.testing.assert_close(mode_loss, loss, rtol=1e-12, atol=1e-12)
    assert largest_error(expected, actual) < 1e-8
    objective, inputs = objective.float(), [tensor.float() for tensor in inputs]
    assert largest_error(gradients(objective, inputs, "stored")[1], gradients(objective, inputs, mode)[1]) < 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_recomputation_runs_under_autocast(name):
    """The backward pass runs outside of autocast, so recomputation must enter it again."""
    torch.manual_seed(0)
    flow = DualFlow(preset(name, steps=(2, 2, 2), low_rank=0), shape=(16, 16, 16), side_features=3)
    inputs = [tensor.float() for tensor in batch(2, shape=(16, 16, 16))]
    initialize_flow(flow, Batch(*inputs))
    objective = FlowObjective(flow)
    dtypes: list[torch.dtype] = []
    for module in flow.flow.modules():
        if isinstance(module, Convolution):
            module.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    expected = gradients(objective, inputs, "stored", bfloat16=True)[1]
    expected_dtypes = set(dtypes)
    for mode in MODES:
        dtypes.clear()
        assert largest_error(expected, gradients(objective, inputs, mode, bfloat16=True)[1]) < 0.1
        assert set(dtypes) == expected_dtypes


@pytest.mark.parametrize("name", ["dualflow", "c_glow", "dual_glow"])
def test_memory_of_a_reversible_level_does_not_grow_with_its_depth(name):
    """From 4 to 32 steps, saved bytes grow by less than 1.3 in reversible mode, and by more than 6 in stored mode."""

    def saved_bytes(depth, mode):
        spec = small(name, levels=1, steps=[depth], hidden=[8])
        level = Level(spec, 0, 1, 4 * (spec.context != "none"))
        set_memory(level, mode)
        parameters = {p.data_ptr() for p in level.parameters()}
        sizes = {}

        def pack(tensor):
            if tensor.data_ptr() not in parameters:
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        context = torch.randn(1, 4, 8, 8, 8) if spec.context != "none" else None
        maps = [{} if context is None else dict.fromkeys(("actnorm", "mixing", "coupling"), context)] * depth
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            out = level(torch.randn(1, 1, 16, 16, 16), maps)
        assert out[0].requires_grad
        return sum(sizes.values())

    assert saved_bytes(32, "reversible") < 1.3 * saved_bytes(4, "reversible")
    assert saved_bytes(32, "stored") > 6 * saved_bytes(4, "stored")


def test_accumulated_gradients_add():
    """Two backward passes without zeroing give the sum of the gradients."""
    objective, inputs = objective_of(build("dualflow")), batch()
    set_memory(objective, "reversible")
    sums = []
    for repeats in (1, 2):
        objective.zero_grad()
        for _ in range(repeats):
            torch.manual_seed(0)
            objective(Batch(*inputs))["loss"].backward()
        sums.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], 2 * value)


class Drifting(Bijection):
    """A layer whose inverse is off by a constant."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error, self.shift = error, nn.Parameter(torch.zeros(1))

    def forward(self, x, context=None):
        return x + self.shift, x.new_zeros(len(x))

    def inverse(self, z, context=None):
        return z - self.shift + self.error, z.new_zeros(len(z))


@pytest.mark.parametrize(("error", "stops"), [(1e-6, False), (0.01, True), (float("nan"), True)])
def test_drift_is_an_error(error, stops):
    """The backward pass compares the recovered input with the original one, so no gradient is wrong silently."""
    x = torch.randn(2, 4, 4, 4, 4, requires_grad=True)
    z, _ = run_chain([[BoundPiece(Drifting(error), None, False)]], x, "reversible")
    if not stops:
        z.sum().backward()
        torch.testing.assert_close(x.grad, torch.ones_like(x))
        return
    with pytest.raises(DriftError, match=r"train\.memory: checkpoint"):
        z.sum().backward()


def test_the_drift_check_is_off_in_its_block_only():
    """A forecast, whose tensors have no values, turns it off."""
    x = torch.randn(2, 4, 4, 4, 4, requires_grad=True)
    with without_drift_check():
        run_chain([[BoundPiece(Drifting(0.01), None, False)]], x, "reversible")[0].sum().backward()
    with pytest.raises(DriftError):
        run_chain([[BoundPiece(Drifting(0.01), None, False)]], x, "reversible")[0].sum().backward()


@pytest.mark.parametrize("size", [(2, 2, 2), (1, 3, 5), (4, 3, 4), (6, 7, 6)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_bfloat16_gradients_of_small_volumes_are_correct(size, kernel):
    """They match float32 gradients; those of oneDNN are wrong where the volume is smaller than the kernel."""
    torch.manual_seed(0)
    convolution, x = Convolution(16, 8, kernel), torch.randn(2, 16, *size)
    weight_gradients = []
    for enabled in (False, True):
        convolution.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = convolution(x)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
        weight_gradients.append(convolution.weight.grad.clone())
    full, reduced = weight_gradients
    assert (full - reduced).norm() < 0.05 * full.norm()
