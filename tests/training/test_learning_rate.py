"""`dualflow bench rate`: where the search ends, and what it advises."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from dualflow.config import parse_config
from dualflow.errors import DualflowError
from dualflow.training import learning_rate as rate


class Bowl(nn.Module):
    """A quadratic that is learnt well at moderate rates; a step beyond it throws far up the other side."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(1.0))

    def forward(self, target):
        return {"loss": 50 * (self.x - target.mean()).square()}


STREAM = [{"target": torch.zeros(2, 1)}] * rate.STEPS


def test_rates_rise_until_the_loss_is_back_where_it_began():
    """From LOW, by one factor; the advice is half of the rate of the lowest running mean."""
    config = parse_config({"study": {"name": "toy"}, "train": {"device": "cpu", "precision": "float32"}})
    frame = pd.DataFrame(rate.tried(Bowl(), config, STREAM))
    assert frame["rate"].iloc[0] == pytest.approx(rate.LOW)
    factors = frame["rate"].to_numpy()[1:] / frame["rate"].to_numpy()[:-1]
    assert factors == pytest.approx(factors[0])
    lowest = frame["loss"].argmin()
    assert 10 < lowest < len(frame)
    assert frame["loss"].min() < 0.5 * frame["loss"].iloc[0]
    assert rate.advised(frame) == pytest.approx(frame["rate"].iloc[lowest] / 2)


def test_a_loss_that_never_falls_is_said():
    """There is no rate to advise then."""
    with pytest.raises(DualflowError, match="fell at no learning rate"):
        rate.advised(pd.DataFrame({"rate": [1e-5, 1e-4], "loss": [1.0, 1.1]}))
