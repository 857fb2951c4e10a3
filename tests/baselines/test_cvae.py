"""The conditional VAE: it learns a known law, and its latents are used."""

from __future__ import annotations

import pytest
import torch
from error_law import NOISE_SD, SHAPE, SHIFT_SD, SIDE_EFFECT, descend, draw_people, standardise

from dualflow.baselines.cvae import BandNoise, ConditionalVAE, gaussian_loss


def test_it_learns_mean_and_spread():
    """After a few steps the spread is about that of the law, and the mean follows the side value."""
    torch.manual_seed(0)
    model = ConditionalVAE(SHAPE, 1, width=8)
    standardise(model)
    terms = descend(model.objective(), 100, 5e-3)
    assert terms[-1]["elbo"] > terms[0]["elbo"] + 0.1
    people = draw_people(2, torch.Generator().manual_seed(7))
    people["side"] = torch.tensor([[1.0], [-1.0]])
    samples = model.sample(people["source"], people["side"], 48, 1.0, torch.Generator().manual_seed(1))
    effect = float((samples[:, 0] - samples[:, 1]).mean())
    assert effect == pytest.approx(2 * SIDE_EFFECT, rel=0.35)
    true = (SHIFT_SD**2 + NOISE_SD**2) ** 0.5
    assert float(samples.std(dim=0).mean()) == pytest.approx(true, rel=0.25)


def test_the_reconstruction_is_a_gaussian_likelihood():
    """The loss is torch's Gaussian likelihood over the bands inside, averaged over the scans."""
    torch.manual_seed(0)
    noise, bands, mean = BandNoise(), torch.randn(2, 8, 4, 4, 4), torch.randn(2, 8, 4, 4, 4)
    torch.nn.init.normal_(noise.raw, std=0.05)
    inside = (torch.rand(2, 1, 4, 4, 4) < 0.5).float()
    inside[1, ..., :2] = 0
    likelihood = -torch.distributions.Normal(mean, noise.log_sigma().exp()).log_prob(bands)
    scans = [of_scan[:, blocks[0] > 0].mean() for of_scan, blocks in zip(likelihood, inside, strict=True)]
    expected = torch.stack(scans)
    loss = gaussian_loss(bands, mean, noise.log_sigma(), inside)
    assert float(loss.detach()) == pytest.approx(float(expected.mean().detach()), rel=1e-4)
