"""The gain of a person against explicit refits."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.person_gain import PersonGain, _held_out

SHAPE = (8, 8, 8)


def people(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sources `[N, 1, D, H, W]` and side values `[N, 2]`."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(count, 1, 1, 1, 1, generator=generator)
    sources = 0.3 + 0.4 * level + 0.1 * torch.rand(count, 1, *SHAPE, generator=generator)
    return sources, torch.randn(count, 2, generator=generator)


def describe(gain: PersonGain, sources: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    return torch.stack([gain.describe(*person) for person in zip(sources, side[:, None], strict=True)])


def test_a_predictable_gain_is_learnt():
    """A gain that follows the side values and the source's level is predicted for new people and held-out folds."""
    gain, (sources, side) = PersonGain(SHAPE, 2, 1), people(80)
    truth = 0.1 * side[:, 0] + 0.3 * (sources.mean(dim=(1, 2, 3, 4)) - 0.55)
    held_out, facts = gain.fit(describe(gain, sources, side), truth, [index % 4 for index in range(80)], range(80))
    assert facts["gain_weight"] > 0.9
    assert (held_out - truth).abs().mean() < 0.2 * truth.abs().mean()
    sources, side = people(20, seed=1)
    truth = 0.1 * side[:, 0] + 0.3 * (sources.mean(dim=(1, 2, 3, 4)) - 0.55)
    assert (gain(sources, side) - 1 - truth).abs().mean() < 0.2 * truth.abs().mean()


def test_an_unpredictable_gain_is_off():
    """Gains that follow nothing give exactly 1."""
    gain, (sources, side) = PersonGain(SHAPE, 2, 1), people(80)
    held_out, facts = gain.fit(
        describe(gain, sources, side), 0.1 * torch.randn(80), [index % 4 for index in range(80)], range(80)
    )
    assert facts["gain_weight"] == 0
    assert not held_out.any()
    assert torch.equal(gain(sources, side), torch.ones(80))


def test_scans_of_a_person_are_not_independent():
    """A weak gain that 20 people show, too few to be clear, stays unclear with six equal scans of each."""
    gain, (sources, side) = PersonGain(SHAPE, 1, 1), people(20)
    rows = describe(gain, sources, side[:, :1])
    noise = torch.randn(20, generator=torch.Generator().manual_seed(2))
    gains = 0.02 * side[:, 0] + 0.03 * noise
    folds = [index % 4 for index in range(20)]
    weights = [
        gain.fit(rows.repeat(visits, 1), gains.repeat(visits), folds * visits, subjects)[1]["gain_weight"]
        for visits, subjects in ((1, range(20)), (6, [*range(20)] * 6), (6, range(120)))
    ]
    assert weights[0] == weights[1] == 0 < weights[2]


def test_held_out_predictions_equal_a_refit():
    """The block formula equals a ridge regression without the fold."""
    rows, values = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    penalty, folds = 0.7 * torch.eye(3, dtype=torch.float64), torch.arange(12) % 3
    hat = rows @ torch.linalg.solve(rows.T @ rows + penalty, rows.T)
    predictions = _held_out(hat, values, folds)
    for fold in range(3):
        x, y = rows[folds != fold], values[folds != fold]
        expected = rows[folds == fold] @ torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        torch.testing.assert_close(predictions[folds == fold], expected)


@pytest.mark.parametrize("side_features", [0, 1])
def test_constant_people_give_finite_gains(side_features):
    """Without variation or side columns the gain is 1."""
    gain = PersonGain(SHAPE, side_features, 1)
    sources, side = torch.full((6, 1, *SHAPE), 0.5), torch.zeros(6, side_features)
    gain.fit(describe(gain, sources, side), torch.randn(6), [0, 1] * 3, range(6))
    assert gain(sources, side).isfinite().all()
