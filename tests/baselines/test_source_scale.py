"""The closed form whose errors follow the source in each voxel."""

from __future__ import annotations

import pytest
import torch
from lesion_people import SHAPE, people

from dualflow.baselines import region_law
from dualflow.baselines.residual_density import SourceScaleDensity, StackedMixtureDensity
from dualflow.data.dataset import PairDataset


@pytest.fixture(scope="module")
def models():
    """The density and the one without the scale, fitted to the same people."""
    fitted = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_law, "STARTS", 1)
        for kind in (StackedMixtureDensity, SourceScaleDensity):
            fitted[kind] = kind(SHAPE, 1)
            fitted[kind].fit(PairDataset(people(40)), [index % 4 for index in range(40)])
    return fitted


def test_samples_vary_more_in_a_lesion(models):
    """Errors are twice as large there; without the scale they are as large as elsewhere."""
    ratios = dict.fromkeys(models, 0.0)
    for kind, model in models.items():
        for p in people(10, seed=1):
            generator = torch.Generator().manual_seed(0)
            std = model.sample(p["source"][None], p["side"][None], 64, generator=generator)[:, 0].std(0)
            ratios[kind] += float(std[p["lesion"]].mean() / std[~p["lesion"]].mean()) / 10
    assert ratios[SourceScaleDensity] == pytest.approx(2.0, abs=0.4)
    assert ratios[StackedMixtureDensity] == pytest.approx(1.0, abs=0.2)


def test_new_people_are_likelier(models):
    """By more than a hundredth of a nat per voxel; the density counts the scale."""
    nats = {
        kind: sum(model.log_prob(*(p[name][None] for name in ("target", "mask", "source", "side"))) for p in new)
        for kind, model in models.items()
        for new in [people(3, seed=2)]
    }
    assert nats[SourceScaleDensity] > nats[StackedMixtureDensity] + 0.01 * 3 * 16**3
