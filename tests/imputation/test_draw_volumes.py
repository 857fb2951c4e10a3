"""Volumes of draws have the region means of the table, and are otherwise samples of the model."""

import numpy as np
import pytest
import torch

from dualflow.imputation.draw_volumes import draw_volumes
from dualflow.imputation.region_values import region_values
from tests.support.imputed_study import ImputedStudy


@pytest.fixture(scope="module")
def study():
    return ImputedStudy.make(40)


def test_region_means_are_those_of_the_draws(study):
    item = study.splits["convert"][0]
    mask = item["mask"][0].numpy()
    draws = 1.5 + np.random.default_rng(0).normal(size=(11, 4))
    volumes = np.stack(list(draw_volumes(study.model, item, study.regions, draws, 3)))
    assert volumes.shape == (11, *mask.shape)
    assert study.regions.means(volumes, mask) == pytest.approx(draws, abs=1e-5)
    assert (volumes[:, ~mask] == 0).all()


def test_the_table_and_the_volumes_share_their_samples(study):
    """The noise of a row is that of its volume: without a shift, the volume is the sample itself."""
    item = study.splits["convert"][0]
    mask = item["mask"][0].numpy()
    values = region_values(study.model, item, study.regions, 5, 3)
    unshifted = np.stack(list(draw_volumes(study.model, item, study.regions, np.full((5, 4), np.nan), 3)))
    means = study.regions.means(unshifted, mask)
    assert means - means.mean(axis=0) == pytest.approx(values.noise, abs=1e-5)
    assert torch.isfinite(torch.tensor(unshifted)).all()
