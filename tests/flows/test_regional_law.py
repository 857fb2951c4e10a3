"""Regional laws against explicit sums."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.regional_law import EDGE, RegionalLaw

SHAPE = (8, 8, 6)


def law_of(features: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> RegionalLaw:
    """Return the law of scans with features `[N, P, D, H, W]` and targets `[N, D, H, W]`."""
    domain = torch.ones(SHAPE, dtype=torch.bool)
    domain[0] = False
    law = RegionalLaw(domain, 3, features.shape[1])
    for index, (rows, target) in enumerate(zip(features, targets, strict=True)):
        law.add(rows, target, mask, index % 3)
    return law


def test_sums_are_pooled_over_blocks():
    """The sums of a block are those of its voxels inside domain and mask, divided by its number of voxels."""
    features, targets = torch.randn(3, 2, *SHAPE), torch.randn(3, *SHAPE)
    mask = torch.rand(SHAPE) < 0.7
    equations = law_of(features, targets, mask).equations
    block = (slice(EDGE, 2 * EDGE), slice(0, EDGE), slice(EDGE, None))
    rows, values = features[1][(slice(None), *block)] * mask[block], targets[1][block]
    voxels = mask[block].numel()
    position = 5  # blocks are ordered by their corner: 2 x 2 x 2 of them, and this one is the sixth
    expected = float((rows[0] * rows[1]).sum() / voxels)
    assert float(equations.gram[1, 1, position]) == pytest.approx(expected, abs=1e-4)
    assert float(equations.moment[1, 1, position]) == pytest.approx(float((rows[1] * values).sum() / voxels), abs=1e-4)


def test_useful_features_reduce_the_error_and_noise_does_not():
    """The comparison of subsets finds the features that the target depends on."""
    features = torch.randn(30, 3, *SHAPE)
    features[:, 0] = 1
    targets = 0.5 + features[:, 1] * torch.linspace(0.5, 1, SHAPE[0])[:, None, None] + 0.1 * torch.randn(30, *SHAPE)
    law = law_of(features, targets, torch.ones(SHAPE, dtype=torch.bool))
    constant, useful, both = law.rmse([0]), law.rmse([0, 1]), law.rmse()
    assert useful < 0.3 * constant
    assert useful <= both
