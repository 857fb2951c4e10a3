"""Transforms of sampled latents: white noise stays white, weights follow the source, seeds repeat."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from scipy.stats import gamma, kstest
from torch import Tensor

from dualflow.errors import ShapeError
from dualflow.flows.latent_sampling import LATENT_TRANSFORMS, interpolate, neighbour_weights

AXES = {"global": (1, 2, 3, 4), "local": (1,), "spatial": (2, 3, 4)}
SHAPE = (2, 8, 6, 7, 6)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_global_normalisation_restores_moments(temperature):
    """Latents of another distribution get mean 0 and variance tau within the sampling error, and keep their order."""
    distorted, tau = 3 + 5 * noise() ** 3, temperature**2
    e = LATENT_TRANSFORMS["global"](distorted, None, temperature, seeded())
    count = e[0].numel()
    for sample in e:
        assert sample.mean().abs() < 3 * sqrt(tau / count)
        assert (sample.var() / tau - 1).abs() < 5 * sqrt(2 / count)
    correlation = torch.corrcoef(torch.stack([e[0].flatten(), distorted[0].flatten()]))[0, 1]
    torch.testing.assert_close(correlation.item(), 1.0)


@pytest.mark.parametrize(("name", "axes"), AXES.items())
def test_moments_follow_their_distributions(name, axes):
    """Over many sets the new mean is N(0, tau / n) and the new variance Gamma((n - 1) / 2, scale 2 tau / (n - 1))."""
    shape = {"global": (4000, 2, 1, 2, 1), "local": (20, 4, 5, 8, 5), "spatial": (500, 8, 1, 2, 2)}[name]
    tau = 0.49
    e = LATENT_TRANSFORMS[name](2 + 9 * noise(shape), None, sqrt(tau), seeded())
    mean, variance = e.mean(axes).flatten() / sqrt(tau / 4), e.var(axes).flatten()
    assert len(mean) == 4000
    assert kstest(mean.numpy(), "norm").pvalue > 0.01
    assert kstest(variance.numpy(), gamma(3 / 2, scale=2 * tau / 3).cdf).pvalue > 0.01
    assert abs(torch.corrcoef(torch.stack([mean, variance]))[0, 1]) < 0.06


@pytest.mark.parametrize(("name", "axes"), AXES.items())
def test_white_noise_stays_white(name, axes):
    """Normalised white noise is normal, and uncorrelated within a set."""
    e = LATENT_TRANSFORMS[name](0.8 * noise((400, 3, 2, 1, 2)), None, 0.8, seeded()) / 0.8
    assert kstest(e.flatten().numpy(), "norm").pvalue > 0.01
    covariance = torch.cov(e.flatten(1).T)
    torch.testing.assert_close(covariance, torch.eye(12, dtype=e.dtype), rtol=0, atol=0.25)


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("shape", [(2, 4, 3, 3, 3), (2, 1, 1, 1, 1)])
def test_temperature_zero_and_equal_latents(name, shape):
    """Temperature 0 gives exactly 0; a set of one latent, or of equal latents, gets a finite value."""
    assert not LATENT_TRANSFORMS[name](torch.zeros(shape), None, 0.0, seeded()).any()
    for e in (torch.zeros(shape), torch.full(shape, 2.0)):
        normalised = LATENT_TRANSFORMS[name](e, None, 1.0, seeded())
        assert normalised.isfinite().all()
        assert normalised.abs().max() < 5


def test_weights_follow_the_source_and_sum_to_one():
    """Weights sum to 1 at every voxel, edges included, and favour neighbours with parallel features."""
    features = torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64)
    features[:, 0, :2], features[:, 1, 2:] = 1.0, 3.0
    weights = neighbour_weights(features, 20.0)
    assert weights.shape == (1, 27, 4, 4, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    across = weights[:, 18:, 1, 1, 1]
    within = weights[:, :18, 1, 1, 1]
    torch.testing.assert_close(within, torch.full_like(within, 1 / 18), rtol=1e-5, atol=0)
    assert across.max() < 1e-8
    assert not weights[:, :9, 0].any()


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_constant_stays_constant(factor):
    """Interpolation of equal latents returns them on the features' grid."""
    weights = neighbour_weights(noise((2, 5, 6, 12, 6)), 4.0)
    e = torch.full((2, 3, 6 // factor, 12 // factor, 6 // factor), 1.7, dtype=torch.float64)
    torch.testing.assert_close(interpolate(e, weights), torch.full((2, 3, 6, 12, 6), 1.7, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1, 2])
def test_sharp_weights_return_the_latents(factor):
    """With all weight on the voxel itself the latents are unchanged, bit by bit, and repeated from a coarser grid."""
    features = noise((2, 5, 4, 6, 8), seed=1)
    e = noise((2, 3, 4 // factor, 6 // factor, 8 // factor))
    repeated = torch.nn.functional.interpolate(e, scale_factor=factor, mode="nearest")
    assert torch.equal(interpolate(e, neighbour_weights(features, 1e9)), repeated)
    one_hot = torch.zeros(2, 27, 4, 6, 8, dtype=torch.float64)
    one_hot[:, 13] = 1
    assert torch.equal(interpolate(e, one_hot), repeated)


def test_interpolated_noise_has_unit_variance():
    """The variance is 1 at every voxel, edges included, and neighbours are correlated."""
    features, sizes = noise((1, 2, 4, 4, 6), seed=1), (4, 4, 6)
    e = LATENT_TRANSFORMS["interpolate"](noise((1, 20000, *sizes)), features, 1.0, None)
    assert e.shape == (1, 20000, *sizes)
    torch.testing.assert_close(e.var(1), torch.ones_like(e[:, 0]), rtol=0, atol=6 * sqrt(2 / 20000))
    neighbours = (e[..., 1:] * e[..., :-1]).mean(1)
    assert neighbours.mean() > 0.1


@pytest.mark.parametrize("name", LATENT_TRANSFORMS)
def test_transforms_repeat_with_the_seed(name):
    """The same generator state gives the same latents, of the same shape and type; the global state is unchanged."""
    e, features = 0.7 * noise().float(), noise((2, 4, *SHAPE[2:]), seed=2).float()
    state = torch.get_rng_state()
    first = LATENT_TRANSFORMS[name](e, features, 0.7, seeded())
    assert torch.equal(first, LATENT_TRANSFORMS[name](e, features, 0.7, seeded()))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.shape, first.dtype) == (e.shape, e.dtype)
    assert torch.equal(first, e) == (name == "none")
    other = LATENT_TRANSFORMS[name](e, features, 0.7, seeded(4))
    assert torch.equal(first, other) == (name in ("none", "interpolate"))


def test_samples_do_not_mix():
    """Changing the first sample does not change the second sample's latents."""
    e, features = noise(), noise((2, 4, *SHAPE[2:]), seed=2)
    changed_e, changed_features = e.clone(), features.clone()
    changed_e[0] += 1
    changed_features[0] += 1
    for transform in LATENT_TRANSFORMS.values():
        expected = transform(e, features, 1.0, seeded())[1]
        assert torch.equal(transform(changed_e, changed_features, 1.0, seeded())[1], expected)


def test_grids_that_do_not_nest_are_refused():
    """The error of an interpolation between grids that do not nest names both grids."""
    with pytest.raises(ShapeError, match=r"\(6, 7, 6\) cannot be repeated onto features on grid \(6, 6, 6\)"):
        LATENT_TRANSFORMS["interpolate"](noise(), noise((2, 4, 6, 6, 6)), 1.0, None)
