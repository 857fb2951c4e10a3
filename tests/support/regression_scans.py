"""Random scans for the fits of conditional means."""

from __future__ import annotations

import torch

from dualflow.flows.regression_scans import RegressionScan
from dualflow.flows.voxel_features import blur

SHAPE = (8, 10, 8)
SIDE = 2


def make_scans(
    count: int, function=None, *, seed: int = 0, noise: float = 0.05, folds: int = 3, channels: int = 1
) -> list[RegressionScan]:
    """Return scans with smooth sources; the target is `function(source, side)` plus noise, by default a sine."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[:, 1:-1, 1:-1, 1:-1] = True
    scans = []
    for index in range(count):
        source = (0.5 + blur(torch.randn(channels, *SHAPE, generator=generator), 0.7)).clamp(0.01, 1)
        side = torch.randn(SIDE, generator=generator)
        clean = (
            torch.sin(3 * source).sum(dim=0, keepdim=True) + 0.1 * side[0]
            if function is None
            else function(source, side)
        )
        target = clean + noise * torch.randn(1, *SHAPE, generator=generator)
        scans.append(RegressionScan(source, target, side, mask, index % folds, index))
    return scans
