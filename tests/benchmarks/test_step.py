"""`dualflow bench step`: what is measured, and what is said where a library is not there."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks import other_libraries as rivals
from benchmarks import step
from torch import nn

from dualflow.config import parse_config
from dualflow.flows.memory import Memory
from dualflow.flows.network import Convolution

OPTIONS = {"levels": 2, "steps": [1, 1], "hidden": [4, 4], "low_rank": 2}


@pytest.fixture
def config(monkeypatch):
    """A tiny flow, timed a few times only."""
    monkeypatch.setattr(step, "WARM", 1)
    monkeypatch.setattr(step, "TIMED", 2)
    return parse_config(
        {
            "study": {"name": "tiny"},
            "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
            "model": {"preset": "dualflow", "options": OPTIONS},
        }
    )


def test_a_step_is_measured_with_its_convolutions(config):
    """Time, the part of it that bare convolutions take, and memory."""
    found = step.measure(config, "reversible")
    assert 0 < found["bare_seconds"] < found["seconds"]
    assert found["ratio"] == found["seconds"] / found["bare_seconds"]
    assert found["samples_per_second"] == 2 / found["seconds"]
    assert math.isfinite(found["memory_mib"])


def test_every_convolution_of_a_pass_counts_with_its_own_size():
    """As often as it is run, at the size and in the number format that it had."""
    first, second = Convolution(1, 3, 3), Convolution(3, 2, 3, stride=2)
    model, x = nn.Sequential(first, second), torch.randn(2, 1, 8, 8, 8)

    def once():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)
            first(x)

    calls = step.convolutions(model, once)
    assert [(tuple(call.x.shape), call.module is first) for call in calls] == [
        ((2, 1, 8, 8, 8), True), ((2, 3, 8, 8, 8), False), ((2, 1, 8, 8, 8), True)
    ]  # fmt: skip
    assert {call.dtype for call in calls} == {torch.bfloat16}
    step.run_bare(calls)
    assert not first._forward_hooks


def test_the_table_has_all_modes_and_says_what_is_not_installed(config, monkeypatch, capsys):
    """A row per memory mode and per stack that can be built; the others are named with the remedy."""
    asked = []

    def alone(name, job, arguments):
        asked.append((name, job.__name__, arguments[-1]))
        return {"seconds": 0.5, "bare_seconds": 0.4, "ratio": 1.25, "samples_per_second": 4.0, "memory_mib": 7.0}

    monkeypatch.setattr(step, "_alone", alone)
    monkeypatch.setattr(rivals, "find_spec", lambda name: None if name == "memcnn" else object())
    step.bench_step(config)
    said = capsys.readouterr().out
    assert [name for name, *_ in asked] == [*Memory.__args__, *(set_ for set_ in rivals.STACKS if "MemCNN" not in set_)]
    assert "not installed: MemCNN additive (pip install FrEIA memcnn)" in said
    assert "| reversible  |  0.500 |" in said


@pytest.mark.parametrize("name", ["dualflow, stored", "dualflow, reversible"])
def test_our_stacks_learn(name, monkeypatch):
    """What is timed is a real step: every parameter gets a gradient."""
    monkeypatch.setattr(rivals, "SHAPE", (4, 4, 4))
    model, objective, x = rivals.stack(name)
    objective(x).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
