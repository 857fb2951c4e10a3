"""Scans whose residuals are smooth fields of known correlation."""

from __future__ import annotations

import torch

from dualflow.baselines.grid_kernel import GridKernel
from dualflow.data.dataset import PairDataset

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
