"""`dualflow bench forecast`: what it follows, what it measures, and what it advises."""

from __future__ import annotations

import pytest
import torch

from dualflow.config import parse_config
from dualflow.flows.memory import Memory
from dualflow.training import forecast
from dualflow.training import memory_footprint as module
from dualflow.training.memory_footprint import footprint
from dualflow.training.step_time import random_training

OPTIONS = {"levels": 2, "steps": [1, 1], "hidden": [4, 4], "low_rank": 2}


def config(*, train=None, options=OPTIONS, preset="dualflow", edge=16):
    """A tiny flow."""
    return parse_config(
        {
            "study": {"name": "tiny"},
            "cohort": {"subjects": 20},
            "preprocess": {"shape": [edge] * 3, "spacing_mm": 12.0},
            "model": {"preset": preset, "options": options},
            "train": train or {},
        }
    )


def test_counted_bytes_are_those_of_real_tensors():
    """What two operations hold at once, by hand: a sum of 4 kB beside its input's square, and after that one only."""

    def action(_model, batch):
        squared = batch["x"] * batch["x"]
        total = squared + 1
        del squared
        total + 1

    x = torch.zeros(1024)
    assert module._most(torch.nn.Linear(1, 1), {"x": x}, action) == 2 * 4096


def test_the_footprint_names_the_parameters_of_the_model():
    """The same numbers as of the real model, and five copies of them between steps."""
    study = config()
    model, _ = random_training(study, study.model)
    found = footprint(study, scans=10)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parameters == trained
    fitted = sum(t.numel() * t.element_size() for t in model.buffers())
    fitted += sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    assert found.weights == 5 * 4 * trained + 3 * fitted
    assert found.scans == 10 * 13 * 16**3
    assert found.model == 4 * trained + fitted
    assert found.peak == found.scans + max(found.mean, found.weights + found.step, found.model + found.start)


def test_depth_costs_memory_stored_and_none_reversible():
    """Of a deep flow, the step holds many times more stored than reversible, and the more the larger the batch."""

    def held(memory, depth, batch=2):
        options = {"levels": 1, "steps": [depth], "hidden": [16]}
        study = config(train={"memory": memory, "batch_size": batch}, options=options, preset="dual_glow", edge=48)
        return footprint(study, scans=10).step

    assert held("reversible", 24) < 1.5 * held("reversible", 4)
    assert held("stored", 24) > 4 * held("reversible", 24)
    assert held("stored", 24, batch=4) == pytest.approx(2 * held("stored", 24), rel=0.1)


def test_processes_share_the_batch():
    """Each holds the activations of its part."""
    assert footprint(config(train={"batch_size": 4, "processes": 2}), 10).step == footprint(config(), 10).step


def test_the_table_has_every_mode_and_names_the_fastest_that_fits(capsys):
    """Memory, time and the largest batch of each memory mode."""
    frame = forecast.bench_forecast(config())
    assert list(frame["mode"]) == list(Memory.__args__)
    assert (frame["seconds"] > 0).all()
    assert (frame["batch"] > 100).all()
    said = capsys.readouterr().out
    fastest = frame.loc[frame["seconds"].idxmin(), "mode"]
    assert f"The fastest that fits is train.memory: {fastest}" in said
    assert "12 scans to learn from and 3 to validate on" in said


def test_what_does_not_fit_is_not_timed(capsys):
    """There is a remedy instead."""
    frame = forecast.bench_forecast(config(), memory_gib=0.01)
    assert frame["seconds"].isna().all()
    assert (frame["batch"] == 0).all()
    assert "Nothing fits into 0.0 GiB. Try a smaller train.batch_size" in capsys.readouterr().out


def test_a_deep_flow_is_timed_by_shallow_ones(monkeypatch):
    """Seconds grow by what each level's step takes."""
    cost = {"levels": [0.5, 0.25]}

    def timed(_config, depth):
        step = 1.0 + sum(count * own for count, own in zip(depth, cost["levels"], strict=True))
        return step, 2 * step

    monkeypatch.setattr(forecast, "_timed", timed)
    options = {"levels": 2, "steps": [30, 40], "hidden": [4, 4]}
    step, validation = forecast.step_seconds(config(options=options, preset="dual_glow"))
    assert step == pytest.approx(1 + 15 + 10)
    assert validation == pytest.approx(2 * step)
