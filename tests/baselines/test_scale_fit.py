"""The scale of a person's errors."""

from __future__ import annotations

import pytest
import torch

from dualflow.baselines.scale_fit import fit_scale
from dualflow.flows.log_linear_scale import LogLinearScale
from dualflow.flows.person_features import person_count, person_values


def people(count: int, effect: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return features, mean squared errors whose log scale is `effect` times the first feature, and folds."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator)
    energy = (2 * effect * features[:, 0]).exp() * torch.randn(count, 30, generator=generator).square().mean(dim=1)
    return features, energy, [index % 4 for index in range(count)]


def test_the_scale_follows_the_feature_that_drives_it():
    """Log scales of new people have the slope of the law, and cross-fitted scales are as large as the errors."""
    features, energy, folds = people(150, 0.4)
    scale = LogLinearScale(4)
    held_out = fit_scale(scale, features, energy, folds)
    new, _, _ = people(100, 0.4, seed=1)
    inside = new[new[:, 0].abs() < 1.5]
    logs = scale(inside).log()
    slope = (logs * inside[:, 0]).sum() / inside[:, 0].square().sum()
    assert float(slope) == pytest.approx(0.4, abs=0.06)
    assert float((energy / energy.mean() / held_out.square()).mean()) == pytest.approx(1.0, abs=0.1)


def test_without_an_effect_the_scale_is_constant():
    """Cross-fitting chooses a strong ridge, so noise in few people makes no scale."""
    scale = LogLinearScale(4)
    fit_scale(scale, *people(40, 0.0))
    assert scale(people(100, 0.0, seed=1)[0]).std() < 0.03


def test_unknown_and_extreme_features_are_safe():
    """An unknown feature counts as its mean, and the scale stays in the range of the training people."""
    features, energy, folds = people(100, 0.4)
    scale = LogLinearScale(4)
    fit_scale(scale, features, energy, folds)
    unknown = torch.full((1, 4), torch.nan)
    assert torch.allclose(scale(unknown), scale(features.mean(dim=0, keepdim=True)))
    assert scale(torch.tensor([[50.0, 0, 0, 0]])).item() == pytest.approx(scale(features).max().item(), rel=1e-4)


def test_features_are_side_values_tissue_and_volume():
    """Tissue fractions are means inside the brain, so the background has no effect on them."""
    source = torch.zeros(2, 2, 8, 8, 8)
    source[0, :, 2:6, 2:6, 2:6] = 0.6
    source[1, :, 2:4, 2:6, 2:6] = 0.6
    features = person_values(source, torch.tensor([[1.0], [torch.nan]]))
    assert features.shape == (2, person_count(1, 2))
    assert features[0, 0] == 1
    assert features[1, 0].isnan()
    assert torch.allclose(features[0, 1:-1], features[1, 1:-1])
    assert float(features[0, -1] - features[1, -1]) == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
