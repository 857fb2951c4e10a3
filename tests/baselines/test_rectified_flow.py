"""The rectified flow: it learns a known law."""

from __future__ import annotations

import torch
from error_law import NOISE_SD, SHAPE, SHIFT_SD, SIDE_EFFECT, descend, draw_people, standardise

from dualflow.baselines.rectified_flow import RectifiedFlow


def test_it_learns_mean_and_spread():
    """A few steps bring the side effect of the samples near that of the law, and their spread nearer to it."""
    torch.manual_seed(0)
    model = RectifiedFlow(SHAPE, 1, width=8)
    standardise(model)
    people = draw_people(2, torch.Generator().manual_seed(7))
    people["side"] = torch.tensor([[1.0], [-1.0]])
    true = (SHIFT_SD**2 + NOISE_SD**2) ** 0.5

    def effect_and_spread() -> tuple[float, float]:
        samples = model.sample(people["source"], people["side"], 32, 1.0, torch.Generator().manual_seed(1))
        return float((samples[:, 0] - samples[:, 1]).mean()), float(samples.std(dim=0).mean())

    _, start = effect_and_spread()
    terms = descend(model.objective(), 120, 5e-3)
    effect, spread = effect_and_spread()
    assert sum(row["loss"] for row in terms[-20:]) < sum(row["loss"] for row in terms[:20])
    assert SIDE_EFFECT < effect < 3 * SIDE_EFFECT
    assert 0.9 * true < spread < start
