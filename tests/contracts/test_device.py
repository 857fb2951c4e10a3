"""Models keep all tensors on the device of their data.

The tests need no GPU. Operations between torch's meta device, whose tensors have no values, and another device fail
too. What needs values runs on a stand-in device (`support/stand_in_device.py`).
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from flow_zoo import small

from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.memory import Memory, set_memory, without_drift_check
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import PRESETS
from dualflow.flows.spec import FlowSpec

SHAPE = (16, 16, 16)
STAND_IN_CHECKS = Path(__file__).parents[1] / "support" / "stand_in_checks.py"


def without_values(name: str) -> FlowSpec:
    """Return a small preset for the meta device, where quantiles of a brain have no size; the stand-in tests those."""
    spec = small(name)
    return spec.replace(mean="local_linear") if spec.mean == "stacked" else spec


@pytest.fixture
def _no_autocast(monkeypatch):
    """Replace autocast, which does not support the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.float32)


@pytest.mark.usefixtures("_no_autocast")
@pytest.mark.parametrize("memory", Memory.__args__)
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_and_a_sample_stay_on_the_device(name, memory):
    """Loss, gradients and samples are on the device of model and volumes, although noise comes from the CPU."""
    with without_drift_check():
        objective = FlowObjective(DualFlow(without_values(name), shape=SHAPE, side_features=2)).to("meta").train()
        set_memory(objective, memory)
        volume = torch.empty(2, 1, *SHAPE, device="meta")
        side = torch.empty(2, 2, device="meta")
        loss = objective(Batch(volume, volume, side, volume > 0))["loss"]
        loss.backward()
        samples = objective.eval().flow.sample(volume, side, 2, generator=torch.Generator())
    assert {loss.device.type, samples.device.type} == {"meta"}
    assert all(p.grad is None or p.grad.device.type == "meta" for p in objective.parameters())


@pytest.mark.usefixtures("_no_autocast")
@pytest.mark.parametrize("name", PRESETS)
def test_density_and_latents_stay_on_the_device(name):
    """Log-likelihood, latents, decoded volumes and streamed samples are on the device of the model."""
    flow = DualFlow(without_values(name), shape=SHAPE, side_features=2).to("meta").eval()
    volume, side = torch.empty(2, 1, *SHAPE, device="meta"), torch.empty(2, 2, device="meta")
    latents, log_det = flow.encode(volume, volume, side)
    results = [
        flow.log_prob(volume, volume, side), *latents, log_det, flow.decode(latents, volume, side),
        *flow.stream(volume, side, 9, generator=torch.Generator()), flow.mean(volume, side),
    ]  # fmt: skip
    assert {result.device.type for result in results} == {"meta"}


@pytest.mark.slow
def test_training_and_prediction_run_on_a_device_other_than_the_cpu():
    """The checks on the stand-in device pass, in a process of their own because torch registers it for good."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(STAND_IN_CHECKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


def test_mixed_devices_are_detected():
    """Operations that mix the meta device with the CPU fail, so the test above detects stray tensors."""
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(2, device="meta") + torch.empty(2)
