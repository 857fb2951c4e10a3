"""`dualflow lr-find`: where the sweep ends, and which rate it suggests."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from dualflow.config import parse_config
from dualflow.errors import DualflowError
from dualflow.training import learning_rate as rate


class Bowl(nn.Module):
    """A quadratic that converges at moderate learning rates and diverges at large ones."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(1.0))

    def set_progress(self, share):
        self.shares = [*getattr(self, "shares", []), share]

    def forward(self, batch):
        return {"loss": 50 * (self.x - batch.target.mean()).square()}


STREAM = [{"target": torch.zeros(2, 1), "source": torch.zeros(2, 1)}] * rate.STEPS


def test_rates_rise_until_the_loss_exceeds_its_first_value():
    """Rates rise from LOW by a constant factor; the suggestion is half of the rate at the lowest running mean."""
    config = parse_config({"study": {"name": "toy"}, "train": {"device": "cpu", "precision": "float32"}})
    bowl = Bowl()
    frame = pd.DataFrame(rate.sweep(bowl, config, STREAM))
    assert bowl.shares[: len(frame)] == [step / rate.STEPS for step in range(len(frame))]
    assert frame["rate"].iloc[0] == pytest.approx(rate.LOW)
    factors = frame["rate"].to_numpy()[1:] / frame["rate"].to_numpy()[:-1]
    assert factors == pytest.approx(factors[0])
    lowest = frame["loss"].argmin()
    assert 10 < lowest < len(frame)
    assert frame["loss"].min() < 0.5 * frame["loss"].iloc[0]
    assert rate.suggest_rate(frame) == pytest.approx(frame["rate"].iloc[lowest] / 2)


def test_a_loss_that_never_decreases_is_an_error():
    """Without a decrease there is no rate to suggest."""
    with pytest.raises(DualflowError, match="decreased at no learning rate"):
        rate.suggest_rate(pd.DataFrame({"rate": [1e-5, 1e-4], "loss": [1.0, 1.1]}))
