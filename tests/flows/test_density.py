"""A conditional flow with its prior is a density: over a grid it sums to one."""

from __future__ import annotations

import torch
from bijection_contract import standard_nll, unsettle

from dualflow.flows.actnorm import ActNorm
from dualflow.flows.base import LowRankGaussian
from dualflow.flows.bijection import Sequential
from dualflow.flows.coupling import AffineCoupling
from dualflow.flows.mixing import InvertibleMixing, random_rotations
from dualflow.flows.network import Conditioner
from dualflow.flows.presets import preset
from dualflow.flows.prior import Evidence, LevelChannels, LevelPrior


def test_density_of_two_voxels_integrates_to_one():
    """Actnorm, mixing, conditioned coupling, relation prior with scale, low-rank base: the integral over R^2 is 1."""
    torch.manual_seed(0)
    rotations = random_rotations(2, 2, closing=False)
    pieces = [
        piece
        for rotation in rotations
        for piece in (ActNorm(2), InvertibleMixing(rotation), AffineCoupling(Conditioner(1, 2, 8), 1.0))
    ]
    flow = Sequential(pieces).double()
    spec = preset("dualflow", prior_mean=True)
    prior = LevelPrior(LevelChannels(2, 3, 0, 2), spec, LowRankGaussian(2, 1)).double()
    x = torch.randn(16, 2, 1, 1, 1, dtype=torch.float64)
    unsettle(flow, lambda: standard_nll(flow, x, torch.ones(16, 8, 1, 1, 1, dtype=torch.float64)))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)[:, :, None, None, None]
        context = torch.ones(len(grid), 8, 1, 1, 1, dtype=torch.float64)
        evidence = Evidence(context[:, :3], None, torch.ones(len(grid), 2, dtype=torch.float64))
        z, log_det = flow(grid, context)
        log_density = prior.log_prob(z, evidence) + log_det
    cell = (axis[1] - axis[0]) ** 2
    assert abs(float(log_density.exp().sum() * cell) - 1) < 1e-3
