"""Flows keep all tensors on the device of their data.

The tests need no GPU: operations between torch's meta device and another device fail too.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from flow_zoo import small

from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.memory import Memory, set_memory, without_drift_check
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import PRESETS

SHAPE = (16, 16, 16)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    """Replace autocast, which does not support the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.float32)


@pytest.mark.parametrize("memory", Memory.__args__)
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_and_a_sample_stay_on_the_device(name, memory):
    """Loss, gradients and samples are on the device of model and volumes, although noise comes from the CPU."""
    with without_drift_check():
        objective = FlowObjective(DualFlow(small(name), shape=SHAPE, side_features=2)).to("meta").train()
        set_memory(objective, memory)
        volume = torch.empty(2, 1, *SHAPE, device="meta")
        side = torch.empty(2, 2, device="meta")
        loss = objective(volume, volume, side, volume > 0)["loss"]
        loss.backward()
        samples = objective.eval().flow.sample(volume, side, 2, generator=torch.Generator())
    assert {loss.device.type, samples.device.type} == {"meta"}
    assert all(p.grad is None or p.grad.device.type == "meta" for p in objective.parameters())


def test_mixed_devices_are_detected():
    """Operations that mix the meta device with the CPU fail, so the test above detects stray tensors."""
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(2, device="meta") + torch.empty(2)
