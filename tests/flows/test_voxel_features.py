"""Blur and voxelwise features of the local linear regression."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from regression_scans import SHAPE, SIDE

from dualflow.errors import ShapeError
from dualflow.flows.voxel_features import (
    IntensityFeatures,
    TissueFeatures,
    blur,
    gradients,
    images_and_detail,
    soft_tissue,
    without_detail,
)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_is_a_gaussian_of_width_sigma(sigma):
    """A blurred impulse has unit mass and standard deviation sigma; a constant stays constant."""
    impulse = torch.zeros(33, 35, 37)
    impulse[16, 17, 18] = 1
    blurred = blur(impulse, sigma)
    profile = blurred.sum(dim=(0, 2))
    position = torch.arange(35) - 17.0
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    assert (profile * position**2).sum().sqrt() == pytest.approx(sigma, abs=0.04)
    assert torch.allclose(blur(torch.full((1, 5, 6, 7), 3.0), sigma), torch.tensor(3.0))


def test_the_feature_count_matches_the_features():
    """`count` is the number of feature maps, so coefficients have their size before fitting."""
    for design, side, channels in product((IntensityFeatures(), TissueFeatures()), (0, 3), (1, 2)):
        features = design(torch.rand(2, channels, *SHAPE), torch.zeros(2, side))
        assert features.shape == (2, design.count(side, channels), *SHAPE)


def test_an_extra_source_only_adds_features():
    """The features of the first source do not change, and the constant remains the first feature."""
    design, source, side = TissueFeatures(), torch.rand(2, 2, *SHAPE), torch.rand(2, SIDE)
    both, single = design(source, side), design(source[:, :1], side)
    assert all(any(torch.equal(a, b) for b in both.unbind(1)) for a in single.unbind(1))
    assert torch.equal(both[:, 0], torch.ones_like(both[:, 0]))
    assert not torch.equal(design(source.flip(1), side), both)


def test_tissue_features_inside_the_brain_are_those_of_the_whole_grid():
    """The computation is restricted to the box of the brain, which changes nothing inside the brain."""
    source = torch.zeros(1, 1, 16, 18, 16)
    source[:, :, 4:12, 5:14, 3:10] = torch.rand(8, 9, 7)
    design = TissueFeatures()
    features = design(source, torch.ones(1, 1))
    narrow = blur(soft_tissue(source), design.narrow)
    wide = blur(narrow, (design.wide**2 - design.narrow**2) ** 0.5)
    inside = source[0, 0] != 0
    expected = torch.cat([narrow, wide, gradients(narrow[:, list(design.edges)])], dim=1)[0][:, inside]
    torch.testing.assert_close(features[0, 1 : 1 + len(expected)][:, inside], expected, atol=1e-5, rtol=1e-4)


def test_features_of_a_brain_at_the_edge_of_the_grid_do_not_depend_on_the_batch():
    """There the box has no margin, and its size follows the other brains of the batch."""
    torch.manual_seed(0)
    source = torch.zeros(2, 1, 12, 12, 12)
    source[0, :, :6, 2:9, 2:9] = torch.rand(6, 7, 7)
    source[1, :, :, :, :] = torch.rand(12, 12, 12)
    design, side = TissueFeatures(), torch.ones(2, 1)
    inside = source[0, 0] != 0
    alone, together = design(source[:1], side[:1])[0], design(source, side)[0]
    torch.testing.assert_close(alone[:, inside], together[:, inside], atol=1e-5, rtol=1e-4)


def test_tissue_with_detail_is_a_mean_over_intensities():
    """The maps are the means of the plain maps over normal intensities whose deviation is the detail."""
    source, detail = torch.full((1, 1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1, 1), 0.15)
    drawn = source + detail * torch.randn(1, 1, 200, 200, 10, generator=torch.Generator().manual_seed(0))
    expected = soft_tissue(drawn).mean(dim=(2, 3, 4))
    assert torch.allclose(soft_tissue(source, detail)[..., 0, 0, 0], expected, atol=2e-3)
    assert torch.allclose(soft_tissue(source, torch.zeros_like(source)), soft_tissue(source))


def test_a_source_is_split_into_images_and_detail():
    """A source of 2C channels carries detail, one of C channels does not, and others are refused."""
    source = torch.rand(2, 4, *SHAPE)
    images, detail = images_and_detail(source, 2)
    assert torch.equal(images, source[:, :2])
    assert torch.equal(detail, source[:, 2:])
    assert torch.equal(without_detail(source[0], 2), source[0, :2])
    assert images_and_detail(source, 4)[1] is None
    with pytest.raises(ShapeError, match="4 channels, expected 3 images, or 6"):
        images_and_detail(source, 3)
