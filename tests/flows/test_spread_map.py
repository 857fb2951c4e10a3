"""Spread maps: the unit of the residual, per voxel of the brain."""

from __future__ import annotations

import pytest
import torch

from dualflow.flows.source_spread import SPREADS
from dualflow.flows.spread_map import VoxelSpread

SHAPE = (12, 10, 8)


def test_the_map_is_the_residuals_standard_deviation():
    """Residuals of twice the spread in one half give a map with that ratio, smoothed at the border."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.full(SHAPE, 0.1)
    truth[6:] = 0.2
    residuals = truth * torch.randn(400, *SHAPE, generator=generator)
    spread = VoxelSpread(SHAPE, 0.05, 1, 1)
    spread.fit(residuals.square().sum(0)[None], torch.full((1, *SHAPE), 400.0))
    torch.testing.assert_close(spread.image[0, :3], truth[:3], rtol=0.05, atol=0)
    torch.testing.assert_close(spread.image[0, -3:], truth[-3:], rtol=0.05, atol=0)


def test_outside_the_brain_the_unit_is_constant():
    """It is the spec's residual scale."""
    spread = VoxelSpread(SHAPE, 0.05, 1, 1)
    spread.fit(torch.ones(1, *SHAPE), torch.ones(1, *SHAPE))
    inside = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    inside[:, :, :4] = False
    unit = spread(inside, torch.rand(1, 1, *SHAPE), torch.zeros(1, 1))
    assert unit[:, :, :4].unique().tolist() == pytest.approx([0.05])
    torch.testing.assert_close(unit[:, :, 4:], torch.ones_like(unit[:, :, 4:]))


def test_voxels_without_people_take_the_median():
    """They would otherwise have a unit near 0."""
    counts = torch.full((1, *SHAPE), 50.0)
    counts[:, :, :4] = 0
    spread = VoxelSpread(SHAPE, 0.05, 1, 1)
    spread.fit(0.04 * counts, counts)
    assert float(spread.image.min()) > 0.1


def test_rescaling_multiplies_the_map():
    """The voxel calibration is one factor."""
    spread = VoxelSpread(SHAPE, 0.05, 1, 1)
    spread.rescale(1.5)
    torch.testing.assert_close(spread.image, torch.full((1, *SHAPE), 0.075))


@pytest.mark.parametrize("name", SPREADS)
def test_a_new_map_is_constant(name):
    """Before a fit every row is the spec's residual scale."""
    torch.testing.assert_close(
        SPREADS[name](SHAPE, 0.3, 1, 1)(
            torch.ones(2, 1, *SHAPE, dtype=torch.bool), torch.rand(2, 1, *SHAPE), torch.zeros(2, 1)
        ),
        torch.full((2, 1, *SHAPE), 0.3),
    )
