"""SubspaceLaw: density and samples agree, spread and mixture weights follow the person."""

from __future__ import annotations

import torch

from dualflow.flows.subspace_law import LawParameters, SubspaceLaw


def bimodal(rank: int = 6) -> SubspaceLaw:
    """Return a law of two modes in the first coordinate, whose weights and spread follow one feature."""
    law = SubspaceLaw(rank, 1).double()
    q = law.leading
    means = torch.zeros(2, q)
    means[:, 0] = torch.tensor([-2.0, 2.0])
    cholesky = 0.5 * torch.eye(q).repeat(2, 1, 1)
    gate = torch.tensor([[0.0, 0.0], [0.0, 1.5]])
    others = torch.full((rank - q,), 0.8), torch.full((rank - q,), 0.1)
    law.set_parameters(LawParameters(means, cholesky, gate, *others))
    law.spread.weight.fill_(0.8)
    law.spread.limits.copy_(torch.tensor([-3.0, 3.0]))
    return law


def test_samples_follow_the_density():
    """Importance weights between the laws of two people have mean 1 only if density and samples are of one law."""
    law, count = bimodal(), 100_000
    like = torch.zeros((), dtype=torch.float64)
    here, there = torch.full((count, 1), 0.2).double(), torch.full((count, 1), 0.0).double()
    t = law.sample(count, here, like, torch.Generator().manual_seed(0))
    weights = (law.log_prob(t, there) - law.log_prob(t, here)).exp()
    assert abs(float(weights.mean()) - 1) < 0.02


def test_the_mixture_weights_follow_the_person():
    """The share of the upper mode is the sigmoid of the gate."""
    law, like = bimodal(), torch.zeros((), dtype=torch.float64)
    for feature in (-1.0, 0.0, 1.0):
        person = torch.full((20_000, 1), feature, dtype=torch.float64)
        upper = (law.sample(20_000, person, like, torch.Generator().manual_seed(1))[:, 0] > 0).double().mean()
        assert abs(float(upper) - float(torch.sigmoid(torch.tensor(1.5 * feature)))) < 0.02


def test_the_spread_follows_the_person_and_the_gain():
    """Variances scale with the squared spread, except for their floor."""
    law, like = bimodal(), torch.zeros((), dtype=torch.float64)
    law.gain.fill_(1.2)
    person = torch.full((50_000, 1), 1.0, dtype=torch.float64)
    t = law.sample(50_000, person, like, torch.Generator().manual_seed(2))
    scale = (1.2**2) * torch.exp(torch.tensor(0.8))
    expected = scale * 0.8 + 0.1
    torch.testing.assert_close(t[:, -1].var(), expected.double(), rtol=0.03, atol=0)


def test_a_person_beyond_the_limit_has_the_limit_s_spread():
    """The logarithm of the spread is bounded, so that no person explodes a sample."""
    law, t = bimodal(), torch.zeros(1, 6, dtype=torch.float64)
    far, farther = (torch.full((1, 1), value, dtype=torch.float64) for value in (50.0, 90.0))
    torch.testing.assert_close(law.log_prob(t, far)[0], law.log_prob(t, farther)[0])


def test_a_new_law_is_standard_normal():
    """Its density is that of independent standard normals, for every person."""
    law, t = SubspaceLaw(7, 3), torch.randn(5, 7)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(t).sum(1)
    torch.testing.assert_close(law.log_prob(t, torch.randn(5, 3)), expected)
