"""Optimiser: one step of AdamW, its schedule, and the EMA of the weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from dualflow.config import TrainConfig
from dualflow.errors import CheckpointError
from dualflow.training import optimiser as module
from dualflow.training.optimiser import Optimiser

CONFIG = TrainConfig(warmup=0.2, ema=0.5, clip_norm=0.1, weight_decay=0.0)


def new(steps=10):
    torch.manual_seed(0)
    return Optimiser(nn.Linear(3, 1), CONFIG, steps, 0.01)


def take(optimiser, scale=1.0):
    return optimiser.step(scale * optimiser.model(torch.ones(1, 3)).square().mean())


def test_rate_rises_then_falls_to_zero(monkeypatch):
    """Linear warm-up over a share of the steps, then cosine decay to zero."""
    monkeypatch.setattr(module, "MIN_WARMUP", 1)
    optimiser, rates = new(), []
    for _ in range(10):
        rates.append(optimiser.adam.param_groups[0]["lr"])
        take(optimiser)
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == rates[1]
    assert all(later < earlier for earlier, later in pairwise(rates[1:]))
    assert optimiser.adam.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_short_training_warms_up_too():
    """The warm-up lasts at least MIN_WARMUP steps, because a deep flow would diverge at the full rate."""
    optimiser, rates = new(), []
    for _ in range(3):
        rates.append(optimiser.adam.param_groups[0]["lr"])
        take(optimiser)
    peak = optimiser.schedule.base_lrs[0]
    assert rates == pytest.approx([peak * share for share in (0.05, 0.1, 0.15)])


def test_average_is_the_ema_of_the_weights():
    """The first step sets the average; later steps move it by 1 - decay."""
    optimiser = new()
    take(optimiser)
    expected = optimiser.model.weight.detach().clone()
    torch.testing.assert_close(optimiser.averaged.weight, expected)
    for _ in range(3):
        take(optimiser)
        expected = 0.5 * expected + 0.5 * optimiser.model.weight.detach()
        torch.testing.assert_close(optimiser.averaged.weight, expected)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_non_finite_loss_advances_only_the_schedule(factor):
    """Weights, their average and Adam's moments stay bit for bit; the learning rate advances with the data."""
    optimiser = new()
    take(optimiser)
    before = {key: value.clone() for key, value in optimiser.tensors().items()}
    rate = optimiser.adam.param_groups[0]["lr"]
    assert take(optimiser, factor) is None
    after = optimiser.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert optimiser.adam.param_groups[0]["lr"] != rate


def test_a_non_finite_gradient_of_a_finite_loss_changes_nothing():
    """The square root is finite at 0, but its slope is infinite."""
    optimiser = new()
    before = optimiser.model.weight.detach().clone()
    assert optimiser.step((optimiser.model.weight * 0).abs().sqrt().sum()) is None
    assert torch.equal(before, optimiser.model.weight)


def test_the_gradient_norm_is_taken_before_clipping():
    """The returned norm is the unclipped one, so that divergence is visible."""
    optimiser, clipped = new(), []
    optimiser.adam.register_step_pre_hook(
        lambda *_: clipped.append(float(nn.utils.get_total_norm([p.grad for p in optimiser.parameters])))
    )
    loss = 100 * optimiser.model(torch.ones(1, 3)).sum()
    assert optimiser.step(loss) == pytest.approx(100 * math.sqrt(4), rel=1e-5)
    assert clipped == pytest.approx([0.1], rel=1e-3)
    assert all(p.grad is None for p in optimiser.parameters)  # frees memory for the next forward pass


def test_a_state_of_another_model_is_refused():
    """The error names the remedy."""
    other = Optimiser(nn.Linear(4, 1), CONFIG, 10, 0.01)
    with pytest.raises(CheckpointError, match="remove the state files"):
        new().load(other.tensors(), 0)


def test_the_reported_rate_of_a_resumed_training_is_that_of_its_step():
    """The first step after a resume uses and reports the rate that an uninterrupted training has."""
    first, resumed = (Optimiser(nn.Linear(2, 1), TrainConfig(), 20, 1e-3) for _ in range(2))
    for _ in range(7):
        first.adam.step()
        first.schedule.step()
    resumed.load(first.tensors(), 7)
    assert resumed.schedule.get_last_lr() == first.schedule.get_last_lr()
    assert resumed.adam.param_groups[0]["lr"] == first.adam.param_groups[0]["lr"]
