"""Interpolation of missing latents: learnt weights over encoded neighbours and the prior's mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dualflow.flows.latent_interpolation import LatentInterpolation

SHAPE = (4, 6, 5)


def make(count: int = 2, seed: int = 0) -> tuple[LatentInterpolation, Tensor, Tensor, Tensor]:
    """Return a module with random weights, latents, which of them are encoded (not the upper half), and features."""
    torch.manual_seed(seed)
    module = LatentInterpolation(3).double()
    torch.nn.init.normal_(module.last.conv.weight)
    encoded = torch.ones(count, 1, *SHAPE, dtype=torch.bool)
    encoded[:, :, 2:] = False
    return (
        module,
        torch.randn(count, 7, *SHAPE).double(),
        encoded,
        torch.randn(count, 3, *SHAPE).double(),
    )


def test_weights_are_a_distribution_over_encoded_neighbours():
    """They sum to 1, are 0 for neighbours that are missing or beyond the edge, and depend on the features."""
    module, _, encoded, features = make()
    weights = module.weights(encoded, features)
    assert weights.shape == (2, 28, *SHAPE)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    border = weights[:, :, 2, 2, 2]
    assert (border[:, :9] > 0).all()
    assert not border[:, 9:27].any()
    assert not weights[:, :9, 0].any()
    far = weights[:, :, 3]
    assert torch.equal(far[:, 27], torch.ones_like(far[:, 27]))
    assert not torch.allclose(weights[0], weights[1])


def test_untrained_weights_are_equal():
    """Before training the nine encoded neighbours beyond a plane, and the prior's mean, have weight 1/10 each."""
    _, e, encoded, features = make()
    module = LatentInterpolation(3).double()
    interpolated = module(e, encoded, features)
    expected = e[:, :, 1, 1:4, 1:4].sum((2, 3)) / 10
    torch.testing.assert_close(interpolated[:, :, 2, 2, 2], expected)


def test_encoded_latents_stay_and_others_are_interpolated():
    """Encoded latents are unchanged bit by bit; the first missing plane is not 0, and the plane behind it is."""
    module, e, encoded, features = make()
    interpolated = module(e, encoded, features)
    assert torch.equal(interpolated[:, :, :2], e[:, :, :2])
    assert interpolated[:, :, 2].all()
    assert not interpolated[:, :, 3].any()
    everywhere = torch.ones_like(encoded)
    assert torch.equal(module(e, everywhere, features), e)
    assert not module(e, ~everywhere, features).any()


@pytest.mark.parametrize("value", [99.0, torch.nan])
def test_missing_values_are_ignored(value):
    """The result does not depend on the latents that are missing, even if they are not finite."""
    module, e, encoded, features = make()
    changed = torch.where(encoded, e, value)
    assert torch.equal(module(changed, encoded, features), module(e, encoded, features))


def test_equal_neighbours_are_shrunk_only_by_the_prior():
    """Interpolated equal latents are the same value times the weight of all neighbours."""
    module, e, encoded, features = make()
    constant = torch.full_like(e, 1.7)
    share = 1 - module.weights(encoded, features)[:, 27:, 2]
    torch.testing.assert_close(module(constant, encoded, features)[:, :, 2], (1.7 * share).expand_as(e[:, :, 2]))


def test_weights_learn_the_best_linear_estimate():
    """If neighbours share a value, the prior's mean loses its weight; if they are white noise, it takes all."""
    torch.manual_seed(0)
    encoded = torch.ones(64, 1, 3, 3, 3, dtype=torch.bool)
    encoded[:, :, 2] = False
    features = torch.ones(64, 2, 3, 3, 3)
    shared = torch.randn(64, 4, 1, 1, 1).expand(-1, -1, 3, 3, 3) + 0.1 * torch.randn(64, 4, 3, 3, 3)
    prior_weights = []
    for e in (shared, torch.randn(64, 4, 3, 3, 3)):
        module = LatentInterpolation(2)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(100):
            optimiser.zero_grad()
            (module(e, encoded, features) - e).square().mean().backward()
            optimiser.step()
        prior_weights.append(module.weights(encoded, features)[:, 27, 2, 1, 1].detach().mean())
    assert prior_weights[0] < 0.05
    assert prior_weights[1] > 0.8
