"""Dequantisation noise, and flows of integer targets: samples are multiples of the bin width, masses are bounded."""

from __future__ import annotations

from math import log, pi, sqrt

import pytest
import torch
from bijection_contract import unsettle
from flow_zoo import (
    BIN_WIDTH,
    SIDE,
    batch,
    build,
    flows_with,
    objective_of,
    parametrize_flows,
    rounded,
    small,
    terms,
    trained,
)
from scipy.stats import kstest, norm
from torch import Tensor

from dualflow.errors import ConfigError, DataError
from dualflow.flows.dequantization import DEQUANTIZATIONS, require_bins
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.predictions import predict
from dualflow.flows.presets import preset
from dualflow.flows.rng import uniform_noise

INTEGERS = flows_with(dequantisation="uniform")
EIGHT = (2, 2, 2)
ONE_LEVEL = {"levels": 1, "steps": [1], "hidden": [6], "low_rank": 0, "dequantisation": "uniform"}


def eight_voxels(bin_width: float, **options) -> DualFlow:
    """Return an untrained flow of 2^3 voxels, which is an orthonormal transform of white noise."""
    torch.manual_seed(0)
    spec = preset("dualflow", **ONE_LEVEL, bin_width=bin_width, residual_scale=1.0, **options)
    return DualFlow(spec, shape=EIGHT, side_features=SIDE).double().eval()


def test_uniform_noise_fills_the_bin():
    """The noise is uniform on [0, bin_width) and reproducible with a generator."""
    spec = small("c_glow", dequantisation="uniform")
    target = torch.full((4, 1, 16, 16, 16), 3 * BIN_WIDTH)
    torch.manual_seed(0)
    noise = (DEQUANTIZATIONS["uniform"](target, spec) - target) / BIN_WIDTH
    assert kstest(noise.flatten().numpy(), "uniform").pvalue > 0.01
    assert noise.min() >= 0
    assert noise.max() < 1
    draws = [uniform_noise(target, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*draws)


def test_real_values_get_gaussian_noise():
    """A real-valued target gets normal noise with the standard deviation of the spec."""
    spec = small("c_glow", noise=0.2)
    torch.manual_seed(0)
    noise = DEQUANTIZATIONS["none"](torch.zeros(4, 1, 16, 16, 16), spec)
    assert kstest((noise / 0.2).flatten().numpy(), "norm").pvalue > 0.01


@parametrize_flows(INTEGERS)
def test_samples_are_multiples(name):
    """Samples at every temperature are multiples of the bin width; a mean of samples is not."""
    flow, (_, source, side) = trained(name), batch()
    samples = flow.sample(source, side, n=3)
    assert torch.equal(samples, rounded(samples))
    for kind in ("temperature0", "one_sample"):
        image = predict(flow, source, side, kind)
        assert torch.equal(image, rounded(image))
    average = predict(flow, source, side, "sample_mean")
    assert not torch.equal(average, rounded(average))


def test_samples_fall_into_the_bins_of_the_noise():
    """A value is the lower end of its bin, so samples of a standard normal average half a bin less."""
    flow, (_, source, side) = eight_voxels(1.0), batch(1, shape=EIGHT)
    samples = flow.sample(source, side, n=4000, generator=torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(-0.5, abs=0.03)
    zeros = (samples == 0).double().mean().item()
    assert zeros == pytest.approx(norm.cdf(1) - norm.cdf(0), abs=0.01)


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_log_mass_bounds_the_mass(width):
    """For white noise the bound has its analytic value, which is slightly below the true log-mass."""
    flow, (_, source, side) = eight_voxels(width), batch(3, shape=EIGHT)
    torch.manual_seed(0)
    target = width * torch.randint(-2, 2, (3, 1, *EIGHT)).double()
    bound = flow.log_mass(target, source, side, draws=1500, generator=torch.Generator().manual_seed(0)).detach()
    # E (y + w u)^2 = (y + w / 2)^2 + w^2 / 12
    second_moment = (target + width / 2).square() + width**2 / 12
    expected = (-0.5 * (second_moment + log(2 * pi)) + log(width)).sum((1, 2, 3, 4))
    torch.testing.assert_close(bound, expected, rtol=0, atol=6 * width * sqrt(8 / 1500))
    mass = torch.from_numpy(norm.cdf(target + width) - norm.cdf(target)).log().sum((1, 2, 3, 4))
    assert (expected < mass).all()
    assert (expected > mass - 0.8).all()


def test_masses_of_all_values_sum_to_at_most_one():
    """For a perturbed flow, the masses of all 4^8 images of eight voxels with four values each."""
    # Without a mean, which would be computed again for each of the images.
    flow = eight_voxels(1.0, mean="none", whitening=False, spread="constant", prediction="temperature0")
    _, source, side = batch(16, shape=EIGHT)
    targets = torch.randint(-2, 2, (16, 1, *EIGHT), generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(1)
    objective = objective_of(flow)
    unsettle(flow, lambda: objective(Batch(targets, source, side))["loss"])
    images = torch.cartesian_prod(*[torch.arange(-2.0, 2.0)] * 8).double().view(-1, 1, *EIGHT)
    with torch.no_grad():
        log_masses = torch.cat(
            [
                flow.log_mass(part, source[:1].expand_as(part), side[:1].expand(len(part), -1))
                for part in images.split(8192)
            ]
        )
    assert 0.1 < log_masses.exp().sum() < 1


@pytest.mark.xdist_group(INTEGERS[0])
def test_log_mass_repeats_with_the_generator():
    """The same generator state gives the same bound; another seed gives another one."""
    flow, (target, source, side) = trained(INTEGERS[0]), batch()
    target = rounded(target)
    bound, repeated, other = (
        flow.log_mass(target, source, side, draws=3, generator=torch.Generator().manual_seed(seed)).detach()
        for seed in (0, 0, 1)
    )
    assert bound.shape == (3,)
    assert torch.equal(bound, repeated)
    assert not torch.equal(bound, other)


@pytest.mark.xdist_group("c_glow")
def test_log_mass_needs_an_integer_flow():
    """A flow of real values has no probability masses."""
    flow, tensors = trained("c_glow"), batch()
    with pytest.raises(ConfigError, match="choose dequantisation: uniform"):
        flow.log_mass(*tensors)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_only_multiples_of_the_bin_width_are_dequantised(scale):
    """Real values would come back rounded; as float32 holds them, multiples are accepted."""
    spec = small("c_glow", dequantisation="uniform", bin_width=0.1 * scale)
    require_bins(torch.arange(-900, 900).float() * (0.1 * scale), spec)
    with pytest.raises(DataError, match=r"a target has the value .*5.*, expected multiples of bin_width = "):
        require_bins(torch.tensor([0.1, 0.15]) * scale, spec)
    require_bins(torch.tensor([0.1, 0.15]) * scale, spec.replace(dequantisation="none"))


def test_log_mass_needs_a_draw():
    """A mean over no draws is not a number."""
    with pytest.raises(ConfigError, match="of 0 draws; give at least 1"):
        build(INTEGERS[0]).log_mass(*batch(), draws=0)


@pytest.mark.xdist_group(INTEGERS[0])
def test_the_training_objective_is_the_bound():
    """In training `nll` is minus the bound per voxel, up to the constant log(bin_width)."""
    flow, (target, source, side) = trained(INTEGERS[0]), batch()
    target = rounded(target)

    def average(values: list[Tensor]) -> float:
        return torch.stack(values).mean().item()

    with torch.no_grad():
        bound = average([flow.log_mass(target, source, side).mean() / 128 - log(BIN_WIDTH) for _ in range(100)])
        flow.train()
        flow.side_tokens.eval()
        assert average([-terms(flow, target, source, side)["nll"] for _ in range(100)]) == pytest.approx(
            bound, abs=0.02
        )
