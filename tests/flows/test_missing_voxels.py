"""Missing voxels are filled from known ones, and better than without them."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import SIDE, batch, build_spec, flows_with, objective_of, parametrize_flows, small, terms, trained
from torch import Tensor

from dualflow.flows.initialization import initialize_flow
from dualflow.flows.missing_voxels import fill_missing, random_slabs
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch

FILLING = ["puflow", *(name for name in flows_with(interpolation_l1=0.5))]
SHAPE = (16, 8, 8)


def known_outside(slab: slice, count: int, shape: tuple[int, ...]) -> Tensor:
    """Return a map of known voxels: all but a slab of the first axis."""
    known = torch.ones(count, 1, *shape, dtype=torch.bool)
    known[:, :, slab] = False
    return known


@parametrize_flows(FILLING)
def test_known_voxels_stay_and_missing_ones_do_not_matter(name):
    """All known: the target. A slab: its values have no influence. None known: the decode at temperature 0."""
    flow, (target, source, side) = trained(name), batch()
    with torch.no_grad():
        condition = flow.condition(source, side)
        known = torch.ones(3, 1, *flow.shape, dtype=torch.bool)
        assert torch.equal(fill_missing(flow, target, known, condition), target)
        expected = flow.draw(condition, temperature=0.0)
        torch.testing.assert_close(fill_missing(flow, target, ~known, condition), expected, rtol=0, atol=1e-9)
        known = known_outside(slice(4, 8), 3, flow.shape)
        filled = fill_missing(flow, target, known, condition)
        assert torch.equal(filled[:, :, :4], target[:, :, :4])
        assert torch.equal(filled, fill_missing(flow, torch.where(known, target, 99.0), known, condition))
        assert not torch.allclose(filled[:, :, 4:], expected[:, :, 4:], atol=1e-3)


@pytest.mark.slow
def test_filling_is_better_than_the_expectation():
    """A person's own level, which the source does not show, is continued into the missing slab, on new people."""
    flow = trained_on_levels()
    target, source, side = with_levels(*batch(64, seed=7, shape=SHAPE), seed=12)
    known = known_outside(slice(6, 10), 64, SHAPE)
    with torch.no_grad():
        condition = flow.condition(source, side)
        errors = [
            (image - target).abs()[~known].mean()
            for image in (fill_missing(flow, target, known, condition), flow.draw(condition, temperature=0.0))
        ]
    assert errors[0] < 0.8 * errors[1]


def with_levels(target: Tensor, source: Tensor, side: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Add to each target a level that source and side values do not show."""
    generator = torch.Generator().manual_seed(seed)
    return target + 0.3 * torch.randn(len(target), 1, 1, 1, 1, generator=generator, dtype=target.dtype), source, side


def trained_on_levels() -> DualFlow:
    """Return a PU-Flow trained on targets with levels."""
    objective = objective_of(build_spec(small("puflow"), shape=SHAPE))
    pool = with_levels(*batch(800, seed=0, shape=SHAPE), seed=11)
    initialize_flow(objective.flow, Batch(*(tensor[:32] for tensor in pool)))
    optimiser = torch.optim.Adam(objective.parameters(), lr=2e-3)
    for step in range(200):
        optimiser.zero_grad()
        objective(Batch(*(tensor[4 * step : 4 * step + 4] for tensor in pool)))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimiser.step()
    return objective.eval().flow


@parametrize_flows(FILLING)
def test_interpolation_l1_is_the_error_of_hidden_voxels(name):
    """The term is the mean absolute error where voxels are hidden, inside the mask, with fixed slabs in evaluation."""
    flow, (target, source, side) = trained(name), batch()
    if flow.spec.dequantisation == "uniform":
        pytest.skip("the target of the term has dequantisation noise")
    hidden = random_slabs(target, torch.Generator().manual_seed(0))
    filled = fill_missing(flow, target, ~hidden, flow.condition(source, side))
    term = terms(flow, target, source, side)["interpolation_l1"]
    torch.testing.assert_close(term, (filled - target).abs()[hidden].mean())
    if not flow.spec.background_noise:
        return
    mask = torch.zeros_like(target, dtype=torch.bool)
    assert terms(flow, target, source, side, mask=mask)["interpolation_l1"] == 0


def test_random_slabs():
    """Half of the scans hide all voxels; the others hide a slab of at most half of one of the three axes."""
    shape = (8, 6, 4)
    hidden = random_slabs(torch.empty(2000, 1, *shape), torch.Generator().manual_seed(0))
    assert hidden.shape == (2000, 1, *shape)
    assert hidden.dtype == torch.bool
    share = hidden.float().mean((1, 2, 3, 4))
    everything = share == 1
    assert 0.45 < everything.float().mean() < 0.55
    slabs = hidden[~everything, 0]
    assert share[~everything].max() <= 0.5
    assert share.min() > 0
    extents = [
        slabs.flatten(2).any(2),
        slabs.transpose(1, 2).flatten(2).any(2),
        slabs.transpose(1, 3).flatten(2).any(2),
    ]
    cut = torch.stack([~extent.all(1) for extent in extents])
    assert (cut.sum(0) == 1).all()
    assert (cut.float().mean(1) - 1 / 3).abs().max() < 0.06
    profile = extents[0][cut[0]].float().mean(0)
    assert (profile > 0).all()
    same = random_slabs(torch.empty(2000, 1, *shape), torch.Generator().manual_seed(0))
    assert torch.equal(hidden, same)


def test_flows_without_the_term_have_no_interpolation():
    """The weights exist only in a flow that trains them."""
    assert not len(DualFlow(small("dualflow"), shape=(8, 4, 4), side_features=SIDE).interpolations)
    assert len(DualFlow(small("dualflow", interpolation_l1=1.0, whitening=False), shape=(8, 4, 4)).interpolations) == 2
