"""A flow with its prior is a probability density: it integrates to one, for every method."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from bijection_contract import standard_nll, unsettle
from flow_zoo import SIDE, batch, objective_of, rounded
from torch import Tensor

from dualflow.flows.actnorm import ACTNORMS
from dualflow.flows.base_distributions import SubspaceBase, white_log_prob
from dualflow.flows.bijection import Bijection, Sequential
from dualflow.flows.coupling import COUPLING_TRANSFORMS, Affine, Coupling, Injector
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.mixing import MIXINGS, random_rotations
from dualflow.flows.model import DualFlow
from dualflow.flows.network import Conditioner
from dualflow.flows.objective import Batch
from dualflow.flows.presets import PRESETS, preset
from dualflow.flows.prior import LevelChannels, LevelPrior, PriorContext
from dualflow.flows.subspace_law import SubspaceLaw

CONTEXT = 8
EIGHT = (2, 2, 2)


def step(actnorm: str, mixing: str, coupling: str, rotation: Tensor) -> list[Bijection]:
    """Return the layers of a flow step on two channels, with an injector; each reads a context of 8 channels."""
    transform = COUPLING_TRANSFORMS[coupling](1.0)
    return [
        ACTNORMS[actnorm](2, CONTEXT),
        MIXINGS[mixing](rotation, CONTEXT),
        Injector(Conditioner(CONTEXT, 4, 6), Affine(0.5)),
        Coupling(Conditioner(1, transform.parameters_per_channel, CONTEXT), transform),
    ]


@pytest.mark.parametrize(
    ("actnorm", "mixing", "coupling"),
    [
        ("plain", "lu", "affine"),
        ("conditional", "conditional", "affine"),
        ("conditional", "conditional", "additive"),
    ],
)
def test_density_of_two_numbers_integrates_to_one(actnorm, mixing, coupling):
    """For every source the integral over R^2 is 1, with two steps, a relation prior and a base with two modes."""
    torch.manual_seed(0)
    rotations = random_rotations(2, 2, closing=False)
    flow = Sequential([layer for rotation in rotations for layer in step(actnorm, mixing, coupling, rotation)]).double()
    base = SubspaceBase(2, SubspaceLaw(1, 2)).double()
    prior = LevelPrior(LevelChannels(2, 3, 0, 2), preset("dualflow", prior_mean=True)).double()
    base.law.means[0], base.law.gate[1], base.law.spread.weight[0] = 0.7, torch.tensor([0.0, 1.0, 0.0]), 0.6
    base.law.spread.limits.copy_(torch.tensor([-1.0, 1.0]))
    x = torch.randn(16, 2, 1, 1, 1, dtype=torch.float64)
    source = torch.randn(16, CONTEXT, 1, 1, 1, dtype=torch.float64)
    flow.initialize(x, source)
    unsettle(flow, lambda: standard_nll(flow, x, source))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for index in range(2):
            assert float(integral(flow, prior, base, source[index])) == pytest.approx(1, abs=1e-3)


def integral(flow: Bijection, prior: LevelPrior, base: SubspaceBase, source: Tensor) -> Tensor:
    """Integrate the density on a grid of eight standard deviations around the mean of the samples."""

    def contexts(count: int) -> tuple[Tensor, PriorContext]:
        context, ones = source.expand(count, -1, -1, -1, -1), torch.ones(count, 2, dtype=torch.float64)
        return context, PriorContext(context[:, :3], None, ones)

    person = torch.ones(2000, 2, dtype=torch.float64)
    context, prior_context = contexts(2000)
    e = base.sample(2000, person, person).view(-1, 2, 1, 1, 1)
    samples = flow.inverse(prior.restore(e, prior_context), context)[0].flatten(1)
    unit = torch.linspace(-8, 8, 121, dtype=torch.float64)
    axes = [mean + deviation * unit for mean, deviation in zip(samples.mean(0), samples.std(0), strict=True)]
    context, prior_context = contexts(len(unit) ** 2)
    z, log_det = flow(torch.cartesian_prod(*axes)[:, :, None, None, None], context)
    cell = torch.stack([axis[1] - axis[0] for axis in axes]).prod()
    e, log_scale = prior.standardise(z, prior_context)
    person = torch.ones(len(z), 2, dtype=torch.float64)
    log_prob = white_log_prob(e) + base.log_ratio(e.flatten(1), person) - log_scale.flatten(1).sum(1)
    return (log_prob + log_det).exp().sum() * cell


@pytest.mark.parametrize("name", PRESETS)
def test_density_of_eight_voxels_integrates_to_one(name):
    """After a short training the density of every preset integrates to 1 over R^8, by importance sampling.

    The proposal is a widened Gaussian with the moments of the flow's samples. The test therefore also fails if samples
    and density disagree.
    """
    torch.manual_seed(0)
    size = {
        "levels": 1,
        "steps": [2],
        "hidden": [6],
        "context_channels": 4,
        "low_rank": min(PRESETS[name].spec.low_rank, 2),
    }
    flow = DualFlow(preset(name, **size), shape=EIGHT, side_features=SIDE).double()
    scans = batch(32, shape=EIGHT)
    initialize_flow(flow, Batch(*scans))
    objective = objective_of(flow)
    optimiser = torch.optim.Adam(objective.parameters(), lr=5e-3)
    for _ in range(15):
        optimiser.zero_grad()
        objective(Batch(*scans))["loss"].backward()
        optimiser.step()
    _, source, side = (tensor[1:2] for tensor in scans)
    flow.eval()
    samples = flow.sample(source, side, n=2000, generator=torch.Generator().manual_seed(0)).flatten(1)
    root = 1.3 * torch.linalg.cholesky(torch.cov(samples.T))
    white = torch.randn(4096, 8, dtype=torch.float64)
    images = (samples.mean(0) + white @ root.T).view(-1, 1, *EIGHT)
    log_proposal = -0.5 * (white.square() + log(2 * pi)).sum(1) - root.diagonal().log().sum()
    with torch.no_grad():
        log_density = flow.log_prob(images, source.expand_as(images), side.expand(len(images), -1))
    weights = (log_density - log_proposal).exp()
    assert weights.mean().item() == pytest.approx(1, abs=4 * float(weights.std()) / len(weights) ** 0.5)
    assert weights.std() < 3


def test_density_of_samples_is_their_entropy():
    """The mean log-density of an untrained flow's samples is minus the entropy of a Gaussian."""
    torch.manual_seed(0)
    spec = preset("dualflow", levels=1, steps=[1], hidden=[6], low_rank=0, residual_scale=0.5)
    flow = DualFlow(spec, shape=EIGHT).double().eval()
    _, source, _ = batch(1, shape=EIGHT)
    samples = flow.sample(source, n=2000, generator=torch.Generator().manual_seed(0))[:, 0]
    with torch.no_grad():
        density = flow.log_prob(samples, source.expand_as(samples))
    assert density.mean().item() == pytest.approx(-4 * (1 + log(2 * pi)) - 8 * log(0.5), abs=0.15)
    assert not torch.equal(samples, rounded(samples))
