"""Directions of the base: gradients of region means through the flow."""

from __future__ import annotations

import pytest
import torch

from dualflow.data.dataset import Item, PairDataset
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.latent_statistics import standardise
from dualflow.flows.model import DualFlow
from dualflow.flows.multiscale import joined, separated
from dualflow.flows.objective import Batch
from dualflow.flows.presets import preset
from dualflow.training.fit_base import fit_base, mean_gradients, orthonormal, region_weights

SHAPE = (8, 8, 8)


def scans(count: int = 6) -> PairDataset:
    """Return scans whose target is noise plus a random offset of one half of the brain."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(count, generator=generator)
    offsets, items = torch.stack([half, -half], dim=1).flatten(), []
    for index in range(count):
        source = torch.rand(1, *SHAPE, generator=generator) + 0.1
        target = 0.05 * torch.randn(1, *SHAPE, generator=generator)
        target[:, :4] += offsets[index]
        mask = torch.ones(1, *SHAPE, dtype=torch.bool)
        items.append({"source": source, "target": target, "mask": mask, "side": torch.zeros(1), "scan": f"sub-{index}"})
    return PairDataset(items)


def flow_of(pairs: PairDataset) -> DualFlow:
    """Return an initialised flow of two levels without a mean."""
    torch.manual_seed(0)
    options = {"levels": 2, "steps": [1, 1], "hidden": [4, 4], "context_channels": 4, "low_rank": 5}
    spec = preset(
        "dualflow",
        **options,
        mean="none",
        whitening=False,
        prediction="temperature0",
        spread="constant",
        residual_scale=1.0,
    )
    flow = DualFlow(spec, shape=SHAPE, side_features=1)
    batch = [torch.stack([item[name] for item in pairs.items]) for name in ("target", "source", "side", "mask")]
    initialize_flow(flow, Batch(*batch))
    return flow.eval()


def unsettled(flow: DualFlow) -> DualFlow:
    """Change the parameters of a new flow, which is linear: all scans have the same gradients."""
    torch.manual_seed(1)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


def doubled(item: Item) -> Item:
    """Return a scan in float64."""
    return {**item, **{name: item[name].double() for name in ("source", "side", "target")}}


def test_region_weights_are_means_of_regions_and_blocks():
    """One row per label and per block of the coarsest level; each sums to 1."""
    labels = torch.zeros(SHAPE, dtype=torch.int32)
    labels[:2], labels[6:] = 1, 2
    weights = region_weights(scans(), labels, 4)
    assert weights.shape == (8 + 2, *SHAPE)
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(10))
    assert (weights[-2] > 0).sum() == 2 * 64


def test_a_fine_grid_has_larger_blocks(monkeypatch):
    """No more than MAX_BLOCKS blocks cover the grid, also where their edges do not divide it."""
    monkeypatch.setattr("dualflow.training.fit_base.MAX_BLOCKS", 8)
    weights = region_weights(scans(), None, 2)
    assert weights.shape == (8, *SHAPE)
    assert ((weights > 0).sum(0) == 1).all()


@pytest.mark.parametrize("at_once", [1, 2])
def test_gradients_are_the_same_however_many_scans_are_decoded_at_once(monkeypatch, at_once):
    """On a fine grid the activations of all would not fit; three scans are decoded by one, or as two and one."""
    pairs = scans(3)
    flow, weights = unsettled(flow_of(pairs).double()), region_weights(pairs, None, 4).double()
    pairs = PairDataset([doubled(item) for item in pairs.items])
    together = mean_gradients(flow, pairs, weights, precision="float32")
    counts, decode = [], flow.decode_standardised

    def counted(latents, condition):
        counts.append((len(latents[0]), len(condition.mean)))
        return decode(latents, condition)

    monkeypatch.setattr(flow, "decode_standardised", counted)
    monkeypatch.setattr("dualflow.training.fit_base.GRADIENT_VOXELS", at_once * 8**3)
    torch.testing.assert_close(
        mean_gradients(flow, pairs, weights, precision="float32"), together, rtol=1e-5, atol=1e-9
    )
    assert counts == {1: [(1, 1)] * 3, 2: [(2, 2), (1, 1)]}[at_once]


def test_gradients_predict_the_change_of_a_mean():
    """A small step of the scans' latents changes the mean of a region by gradient times step, averaged over scans."""
    pairs = scans(2)
    flow = unsettled(flow_of(pairs).double())
    items = [doubled(pairs[index]) for index in range(2)]
    weights = region_weights(pairs, None, 4).double()
    rows = mean_gradients(flow, PairDataset(items), weights)
    assert rows.shape == (8, 8 * 8 * 8)

    def means(item: dict[str, torch.Tensor], step: torch.Tensor) -> torch.Tensor:
        condition = flow.condition(item["source"][None], item["side"][None])
        e = joined(standardise(flow, flow.encoding(item["target"][None], condition), condition)) + step
        return (flow.decode_standardised(separated(e, 1, SHAPE, 2), condition)[:, 0] * weights).sum((1, 2, 3))

    step = 1e-5 * torch.randn(rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        change = sum((means(item, step) - means(item, -step)) / 2 for item in items) / 2
    # The gradients are computed in bfloat16.
    torch.testing.assert_close(change, rows.double() @ step, rtol=0.1, atol=0.05 * float(change.abs().max()))


def test_the_fit_finds_the_shared_offset():
    """The offset of half of the brain gives the leading coordinate most of the variance of samples."""
    pairs = scans(24)
    flow = flow_of(pairs)
    facts = fit_base(flow, pairs, None, [index % 4 for index in range(24)], 0, initial=True)
    law = flow.base.law
    person = torch.zeros(2000, flow.person.count)
    variance = law.sample(2000, person, torch.zeros(()), torch.Generator().manual_seed(0)).var(0)
    assert facts["people"] == 24
    assert variance[0] > 5 * variance[1:].max()


def test_a_basis_is_completed_to_the_rank():
    """Fewer functionals than directions leave random orthonormal ones."""
    basis = orthonormal(torch.randn(2, 10, generator=torch.Generator().manual_seed(0)), 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)


def test_what_functionals_share_comes_first():
    """Three functionals that are nearly the same and one of its own have the shared direction first."""
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(2, 10, generator=generator)
    rows = torch.stack([own, *(shared + 0.01 * torch.randn(10, generator=generator) for _ in range(3))])
    basis = orthonormal(rows, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-5, rtol=0)
    heard = (rows @ basis).square().sum(0) / rows.square().sum()
    assert (heard.diff() < 0).all()
    assert abs(float(basis[:, 0] @ shared / shared.norm())) > 0.9
