"""Standardised latents invert, and their sets take the moments of a reference."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from flow_zoo import batch, each_flow, parametrize_flows, trained
from scipy.stats import gamma, kstest
from torch import Tensor

from dualflow.flows.latent_statistics import SETS, match_moments, standardise

SHAPE = (2, 8, 6, 7, 6)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_flow
def test_standardised_latents_invert(name):
    """Decoding the standardised latents of a target gives the target, and those of another person do not."""
    flow, (target, source, side) = trained(name), batch()
    with torch.no_grad():
        condition = flow.condition(source, side)
        latents = standardise(flow, flow.encoding(target, condition), condition)
        torch.testing.assert_close(flow.decode_standardised(latents, condition), target, rtol=0, atol=1e-9)
        swapped = [e.roll(1, 0) for e in latents]
        assert not torch.allclose(flow.decode_standardised(swapped, condition), target, atol=1e-2)


@each_flow
def test_standardised_latents_of_the_mean_are_zero(name):
    """The decode at temperature 0 has standardised latents 0, at every level."""
    flow, (_, source, side) = trained(name), batch()
    with torch.no_grad():
        condition = flow.condition(source, side)
        for e in standardise(flow, flow.encoding(flow.draw(condition, 0.0), condition), condition):
            torch.testing.assert_close(e, torch.zeros_like(e), rtol=0, atol=1e-9)


@parametrize_flows(["dualflow", "srflow"])
def test_drawn_latents_are_those_of_samples(name):
    """They are white where the base is, scale with the temperature, and decode to the sample of the same seed."""
    flow, (_, source, side) = trained(name), batch(32, seed=3)
    with torch.no_grad():
        condition = flow.condition(source, side)
        first, cold = (flow.draw_latents(condition, t, torch.Generator().manual_seed(1)) for t in (1.0, 0.5))
        drawn = flow.draw(condition, 0.5, torch.Generator().manual_seed(1))
        torch.testing.assert_close(flow.decode_standardised(cold, condition), drawn)
    assert kstest(first[0].flatten().numpy(), "norm").pvalue > 0.01
    for e, half in zip(first, cold, strict=True):
        torch.testing.assert_close(half, 0.5 * e, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sets", SETS)
def test_moments_become_those_of_the_reference(sets):
    """Mean and standard deviation of every set are the reference's, and the latents keep their order in a set."""
    axes, e = SETS[sets], match_moments(3 + 5 * noise() ** 3, 0.5 * noise(seed=1) - 1, sets)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(e, axes), moment(0.5 * noise(seed=1) - 1, axes))
    changed, original = e[0, :, 0, 0, 0], (noise() ** 3)[0, :, 0, 0, 0]
    if sets == "local":
        torch.testing.assert_close(torch.corrcoef(torch.stack([changed, original]))[0, 1].item(), 1.0)


@pytest.mark.parametrize("sets", SETS)
def test_white_references_give_the_published_moments(sets):
    """Under white noise of variance tau the means are N(0, tau / n) and the variances Gamma, as SRFlow states."""
    shape = {"global": (4000, 2, 1, 2, 1), "local": (20, 4, 5, 8, 5), "spatial": (500, 8, 1, 2, 2)}[sets]
    tau, axes = 0.49, SETS[sets]
    e = match_moments(2 + 9 * noise(shape), sqrt(tau) * noise(shape, seed=1), sets)
    mean, variance = e.mean(axes).flatten() / sqrt(tau / 4), e.var(axes).flatten()
    assert len(mean) == 4000
    assert kstest(mean.numpy(), "norm").pvalue > 0.01
    assert kstest(variance.numpy(), gamma(3 / 2, scale=2 * tau / 3).cdf).pvalue > 0.01
    assert abs(torch.corrcoef(torch.stack([mean, variance]))[0, 1]) < 0.06


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("shape", [(2, 4, 3, 3, 3), (2, 4, 5, 5, 5), (2, 1, 1, 1, 1)])
@pytest.mark.parametrize("value", [2.0, 0.1, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_latents_become_the_new_mean(sets, shape, value, dtype):
    """A set of one latent, or of equal latents, has no direction: it becomes the reference's mean, whatever rounds."""
    reference = noise(shape, seed=2).to(dtype)
    e = match_moments(torch.full(shape, value, dtype=dtype), reference, sets)
    torch.testing.assert_close(e, reference.mean(SETS[sets], keepdim=True).expand(shape))


@pytest.mark.parametrize("sets", SETS)
def test_samples_do_not_mix(sets):
    """Changing the first sample or its reference does not change the second sample's latents."""
    e, reference = noise(), noise(seed=1)
    changed, other = e.clone(), reference.clone()
    changed[0] += 1
    other[0] *= 2
    assert torch.equal(match_moments(changed, other, sets)[1], match_moments(e, reference, sets)[1])
