"""The correlation of the residuals of training pairs."""

from __future__ import annotations

import torch
from flow_zoo import small
from smooth_residuals import SHAPE, SHARES, scans

from dualflow.data.dataset import PairDataset
from dualflow.flows.model import DualFlow
from dualflow.training.fit_whitening import fit_whitening


def test_the_shares_are_those_of_the_residuals_in_units_of_their_spread():
    """Mean image and spread of a scan are removed first."""
    flow = DualFlow(small("dualflow"), shape=SHAPE, side_features=3)
    fit_whitening(flow, scans())
    torch.testing.assert_close(flow.whitening.shares, SHARES, rtol=0, atol=0.07)


def test_without_a_mean_of_its_own_a_scan_takes_the_flows():
    """Pairs that are not cross-fitted have the residuals of the flow's mean and spread."""
    pairs = scans()
    spread = [{key: item[key] for key in item if key not in ("mean", "spread")} for item in pairs.items]
    for item, whole in zip(spread, pairs.items, strict=True):
        item["target"] = (whole["target"] - whole["mean"]) / whole["spread"]  # the mean of a new flow is 0
    flow = DualFlow(small("dualflow", mean="local_linear", spread="constant"), shape=SHAPE, side_features=3)
    fit_whitening(flow, PairDataset(spread))
    torch.testing.assert_close(flow.whitening.shares, SHARES, rtol=0, atol=0.07)


def test_a_flow_without_whitening_is_left_alone():
    """There is nothing to fit."""
    flow = DualFlow(small("dualflow", whitening=False), shape=SHAPE, side_features=3)
    fit_whitening(flow, scans(1))
    assert flow.whitening is None
