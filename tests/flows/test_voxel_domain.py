"""Smoothing over the voxels of a local regression."""

from __future__ import annotations

import pytest
import torch

from dualflow.errors import DataError
from dualflow.flows.voxel_domain import MARGIN, VoxelDomain, extended
from dualflow.flows.voxel_features import blur

SHAPE = (10, 9, 8)


@pytest.fixture
def mask():
    """Return an irregular mask that does not touch the faces of the grid and is not symmetric."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[1:7, 2:8, 1:6] = torch.rand(6, 6, 5) < 0.8
    return mask


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.0, 0.6])
def test_a_lattice_has_the_values_of_the_full_map(mask, sigma, step):
    """With a step, smoothing returns the same values at fewer voxels."""
    domain, maps = VoxelDomain(mask), torch.randn(3, int(mask.sum()))
    full = domain.smooth(maps, sigma)
    torch.testing.assert_close(domain.smooth(maps, sigma, step=step), full[:, domain.lattice(step)])


def test_smoothing_is_a_blur_of_the_dense_map(mask):
    """Voxels outside the domain count as 0, and voxels outside its symmetric box do not count."""
    domain, dense = VoxelDomain(mask), torch.randn(2, *SHAPE) * mask
    box = (slice(1, 9), slice(2, 8), slice(1, 6))
    expected = blur(dense[:, *box], 0.4)[:, mask[box]]
    torch.testing.assert_close(domain.smooth(dense[:, mask], 0.4), expected)


def test_the_mirror_image_is_added_with_its_sign(mask):
    """A voxel gets its own value and that of its mirror image, which is 0 outside the domain."""
    domain, dense = VoxelDomain(mask), torch.randn(2, *SHAPE) * mask
    sign = torch.tensor([1.0, -1.0])
    expected = (dense + sign[:, None, None, None] * dense.flip(1))[:, mask]
    torch.testing.assert_close(domain.smooth(dense[:, mask], 0.0, sign), expected)


def test_an_empty_domain_is_refused():
    """The masks must hold a voxel."""
    with pytest.raises(DataError, match="no voxel"):
        VoxelDomain(torch.zeros(SHAPE, dtype=torch.bool))


def test_maps_continue_beyond_their_voxels(mask):
    """Known voxels stay, a voxel beside them takes their mean, and far away there is nothing."""
    maps = torch.randn(2, 40, 9, 8)
    whole = torch.zeros(40, 9, 8, dtype=torch.bool)
    whole[: len(mask)] = mask
    result = extended(maps, whole)
    assert torch.equal(result[:, whole], maps[:, whole])
    one = torch.zeros(40, 9, 8, dtype=torch.bool)
    one[10, 4, 4] = one[12, 4, 4] = True
    between = extended(maps, one)[:, 11, 4, 4]
    torch.testing.assert_close(between, maps[:, [10, 12], 4, 4].mean(dim=1))
    torch.testing.assert_close(extended(maps, one)[:, 9, 4, 4], maps[:, 10, 4, 4])
    assert not extended(maps, one)[:, 12 + MARGIN + 1 :].any()
