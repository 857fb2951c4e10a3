"""The correlation of the residuals of training pairs."""

from __future__ import annotations

import torch
from flow_zoo import small

from dualflow.baselines.grid_kernel import GridKernel
from dualflow.data.dataset import PairDataset
from dualflow.flows.model import DualFlow
from dualflow.training.fit_whitening import fit_whitening

SHAPE = (16, 16, 16)
SHARES = torch.tensor([0.3, 0.0, 0.7, 0.0])


def scans(count: int = 12) -> PairDataset:
    """Return scans whose residual is a smooth field times a spread that differs between the halves of the grid."""
    kernel, generator = GridKernel(SHAPE), torch.Generator().manual_seed(0)
    kernel.weights.copy_(SHARES)
    spread = torch.ones(1, *SHAPE)
    spread[:, :8] = 5.0
    items = []
    for field in kernel.draw(count, generator):
        source, mean = torch.rand(1, *SHAPE, generator=generator) + 0.1, torch.rand(1, *SHAPE, generator=generator)
        items.append({"source": source, "target": mean + spread * field, "mean": mean, "spread": spread,
                      "mask": torch.ones(1, *SHAPE, dtype=torch.bool), "side": torch.zeros(3)})  # fmt: skip
    return PairDataset(items)


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
