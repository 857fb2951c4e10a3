"""Meta-regions of the atlas."""

import numpy as np
import pytest

from dualflow.config import PreprocessConfig
from dualflow.imaging.meta_regions import meta_region_weights, meta_regions
from dualflow.imaging.regions import region_map


@pytest.fixture(scope="module")
def regions():
    """The atlas on a 4 mm grid."""
    return region_map(PreprocessConfig())


def test_every_listed_region_is_in_the_atlas(regions):
    """A misspelt row would silently shrink its meta-region."""
    names = {name.split("-")[-1] for name in regions.names}
    assert {region for group in meta_regions().values() for region in group} <= names


def test_the_mean_of_a_meta_region_is_that_of_its_voxels(regions):
    """Weighted region means equal the mean over the voxels of both hemispheres."""
    rng = np.random.default_rng(0)
    volume, mask = rng.normal(size=regions.labels.shape), rng.random(regions.labels.shape) < 0.7
    names, weights = meta_region_weights(regions, mask)
    means = weights @ np.nan_to_num(regions.means(volume, mask))
    members = [
        index + 1 for index, name in enumerate(regions.names) if name.split("-")[-1] in meta_regions()["occipital"]
    ]
    assert len(members) == 8
    expected = volume[np.isin(regions.labels, members) & mask].mean()
    assert means[names.index("occipital")] == pytest.approx(expected)


def test_a_meta_region_outside_the_mask_is_unknown(regions):
    """An empty mask gives no mean."""
    _, weights = meta_region_weights(regions, np.zeros(regions.labels.shape, bool))
    assert np.isnan(weights).all()
