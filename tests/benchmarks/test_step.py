"""The step benchmark: its measurements, its table, and a library that is not installed."""

from __future__ import annotations

import math
from itertools import accumulate

import other_libraries
import pytest
import step
import torch
from click.testing import CliRunner
from torch import nn

from dualflow.config import parse_config
from dualflow.errors import ConfigError
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


def test_a_step_is_measured_with_its_convolutions(config, monkeypatch):
    """Steps and bare convolutions are timed in turns; a time is the minimum after the warm-up, of the better layout."""
    seconds = [1, 1, 1, 4, 5, 3, 8, 2, 9]  # step, convolutions in both layouts, step, ...; the first three are warm-up
    clock = accumulate(elapsed for duration in seconds for elapsed in (100, duration))
    monkeypatch.setattr(step, "perf_counter", lambda: next(clock))
    row = step.measure(config, "reversible")
    assert math.isfinite(row.pop("memory_mib"))
    assert row == {"seconds": 4, "bare_seconds": 2, "ratio": 2, "samples_per_second": 2 / 4}
    assert next(clock, None) is None


def test_every_convolution_of_a_pass_counts_with_its_own_size():
    """Each call of a convolution is recorded, with the shape and number format of its input."""
    first, second = Convolution(1, 3, 3), Convolution(3, 2, 3, stride=2)
    model, x = nn.Sequential(first, second), torch.randn(2, 1, 8, 8, 8)

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)
            first(x)

    calls = step.convolutions(model, forward)
    assert [(tuple(call.x.shape), call.module is first) for call in calls] == [
        ((2, 1, 8, 8, 8), True), ((2, 3, 8, 8, 8), False), ((2, 1, 8, 8, 8), True)
    ]  # fmt: skip
    assert {call.dtype for call in calls} == {torch.bfloat16}
    step.run_all(
        [step.bare_pass(call, layout, torch.device("cpu")) for call in calls for layout in step.LAYOUTS.values()]
    )
    assert not first._forward_hooks


def test_the_table_has_all_modes_and_names_missing_libraries(config, monkeypatch, capsys):
    """The tables have a row per memory mode and per stack whose library is installed; the rest are named."""
    jobs = []

    def in_new_process(name, job, arguments):
        jobs.append((name, job.__name__, arguments[-1]))
        return {"seconds": 0.5, "bare_seconds": 0.4, "ratio": 1.25, "samples_per_second": 4.0, "memory_mib": 7.0}

    monkeypatch.setattr(step, "_in_new_process", in_new_process)
    monkeypatch.setattr(other_libraries, "find_spec", lambda name: None if name == "memcnn" else object())
    step.benchmark_step(config)
    output = capsys.readouterr().out
    assert [name for name, *_ in jobs] == [
        *Memory.__args__,
        *(name for name in other_libraries.STACKS if "MemCNN" not in name),
    ]
    assert "not installed: MemCNN additive (pip install FrEIA memcnn)" in output
    assert "| reversible  |  0.500 |" in output


@pytest.mark.parametrize("name", ["dualflow, stored", "dualflow, reversible"])
def test_every_parameter_of_our_stacks_gets_a_gradient(name, monkeypatch):
    """The benchmark times a real training step."""
    monkeypatch.setattr(other_libraries, "SHAPE", (4, 4, 4))
    model, objective, x = other_libraries.build_stack(name)
    objective(x).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_error_of_the_configuration_is_one_line():
    """The script fails as the `dualflow` command does: with the error's exit code and no traceback."""
    done = CliRunner().invoke(step.main, ["--set", "train.batch_size=0"])
    assert done.exit_code == ConfigError.exit_code
    assert len(done.stderr.splitlines()) == 1
    assert "batch_size" in done.stderr
