"""Features of the rich regression."""

from __future__ import annotations

import pytest
import torch
from regression_scans import SIDE

from dualflow.flows.abnormality import abnormality_rows
from dualflow.flows.harmonise import quantiles
from dualflow.flows.rich_features import RichFeatures

SHAPE = (8, 10, 8)


def fitted(channels: int = 1, sources: torch.Tensor | None = None) -> RichFeatures:
    """Return features with a harmonisation, a contrast and an abnormality, fitted to ten people."""
    sources = 0.2 + 0.6 * torch.rand(10, channels, *SHAPE) if sources is None else sources
    design = RichFeatures(SHAPE, channels)
    design.fit_contrast(torch.stack([quantiles(source).flatten() for source in sources]))
    design.harmonise.fit(list(sources), [1] * channels)
    design.abnormality.fit([(source, torch.ones(SHAPE, dtype=torch.bool)) for source in design.harmonise(sources)])
    design.abnormality.choose(abnormality_rows(channels)[-1])
    return design


@pytest.mark.parametrize("channels", [1, 2])
def test_the_feature_count_matches_the_features(channels):
    """`count` is the number of feature maps; the first one is constant; all are finite without a brain too."""
    design = fitted(channels)
    sources = torch.stack([torch.rand(channels, *SHAPE), torch.zeros(channels, *SHAPE)])
    features = design(sources, torch.zeros(2, SIDE))
    assert features.shape == (2, design.count(SIDE, channels), *SHAPE)
    assert features.isfinite().all()
    assert torch.equal(features[:, 0], torch.ones_like(features[:, 0]))


def test_a_reflected_person_has_reflected_features():
    """Only the gradients along axis 0 change their sign, so a mirrored fit may add a voxel and its mirror image."""
    sources = 0.2 + 0.6 * torch.rand(6, 1, *SHAPE)
    design = fitted(sources=torch.cat([sources, sources.flip(2)]))
    source = 0.2 + 0.6 * torch.rand(1, 1, *SHAPE)
    side = torch.randn(1, SIDE)
    sign = torch.ones(design.count(SIDE))
    sign[design.odd(SIDE)] = -1
    mirrored = design(source.flip(2), side)[0].flip(1)
    torch.testing.assert_close(mirrored, design(source, side)[0] * sign[:, None, None, None], atol=1e-4, rtol=1e-4)
    assert len(design.odd(SIDE)) == 3


def test_the_contrast_score_orders_scanners():
    """It has variance 1 in training, and separates scans with two gammas."""
    sources = 0.2 + 0.6 * torch.rand(10, 1, *SHAPE)
    sources[5:] = sources[5:].sqrt()
    design = fitted(sources=sources)
    scores = torch.stack([design.contrast(source) for source in sources])
    assert scores.std() == pytest.approx(1, abs=1e-3)
    assert scores[:5].max() < scores[5:].min() or scores[5:].max() < scores[:5].min()
