"""The refit of a trained flow's whitening."""

from __future__ import annotations

import pytest
import torch
from flow_zoo import small
from smooth_residuals import SHAPE, SHARES, scans

from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.training.refit_whitening import refit_whitening, set_long_terms
from dualflow.training.trainer import to_batch


def fitted(factor: float = 1.0, **options: object) -> tuple[DualFlow, PairDataset]:
    """Return an initialised flow and its pairs; the long terms of its whitening are wrong by a factor."""
    torch.manual_seed(0)
    flow, pairs = DualFlow(small("dualflow", **options), shape=SHAPE, side_features=3), scans()
    if flow.whitening is None:
        return flow, pairs
    flow.whitening.set_correlation(SHARES)
    initialize_flow(flow, to_batch(collate(list(pairs.items)), torch.device("cpu")))
    gain = set_long_terms(flow.whitening, SHARES, factor)
    if options.get("spread") != "constant":
        flow.spread.rescale(gain)
    return flow, PairDataset([{**item, "spread": gain * item["spread"]} for item in pairs.items])


@torch.no_grad()
def log_prob(flow: DualFlow, pairs: PairDataset) -> float:
    """Exact density of the pairs, nats per voxel."""
    batch = collate(list(pairs.items))
    condition = flow.condition(batch["source"], batch["side"], batch["mean"], batch["spread"])
    return float(flow.density(batch["target"], condition)[0].mean()) / batch["target"][0].numel()


def test_long_terms_that_are_too_large_are_mended():
    """Shares, spread map and spreads of the pairs are as they should be again, and the pairs are likelier."""
    (right, true), (flow, pairs) = fitted(), fitted(2.0)
    before = log_prob(flow, pairs)
    pairs, facts = refit_whitening(flow, pairs)
    assert facts == {"long_terms": 0.5}
    torch.testing.assert_close(flow.whitening.shares, SHARES)
    torch.testing.assert_close(flow.spread.image, right.spread.image)
    torch.testing.assert_close(pairs[0]["spread"], true[0]["spread"])
    assert log_prob(flow, pairs) > before
    assert log_prob(flow, pairs) == pytest.approx(log_prob(right, true), abs=1e-4)


def test_a_factor_at_the_edge_of_the_table_is_announced(caplog):
    """A better one may lie outside."""
    flow, pairs = fitted(0.5)
    assert refit_whitening(flow, pairs)[1] == {"long_terms": 1.4}
    assert "the factor of the correlation of distant voxels 1.4, at the edge" in caplog.text


def test_right_long_terms_are_kept():
    """The flow is the same, to the last digit of its density."""
    flow, pairs = fitted()
    before = log_prob(flow, pairs)
    pairs, facts = refit_whitening(flow, pairs)
    assert facts == {"long_terms": 1.0}
    assert log_prob(flow, pairs) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("options", [{"whitening": False}, {"spread": "constant"}])
def test_a_flow_without_whitening_or_map_is_left_alone(options):
    flow, pairs = fitted(**options)
    assert refit_whitening(flow, pairs) == (pairs, {})


def test_a_whitening_of_near_voxels_is_left_alone():
    """There is no long term to multiply."""
    flow, pairs = fitted()
    flow.whitening.set_correlation(torch.tensor([0.4, 0.6, 0.0, 0.0]))
    assert refit_whitening(flow, pairs) == (pairs, {})
