"""Region maps: which regions, where, and their means."""

from __future__ import annotations

import numpy as np
import pytest

from dualflow.config import PreprocessConfig
from dualflow.errors import ShapeError
from dualflow.imaging.atlas import desikan_killiany
from dualflow.imaging.intensity import INSIDE
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.regions import MINIMUM_VOXELS, RegionMap, from_labels, region_map


@pytest.fixture(scope="module")
def regions() -> RegionMap:
    return region_map(PreprocessConfig())


def test_means_agree_with_a_loop_over_regions():
    """The vectorised means equal plain masked means, for any number of leading axes."""
    rng = np.random.default_rng(0)
    regions = RegionMap(rng.integers(0, 5, (6, 7, 5)), ("a", "b", "c", "d"), (4.0, 4.0, 4.0))
    mask = rng.random((6, 7, 5)) < 0.7
    volume = rng.normal(size=(2, 3, 6, 7, 5)).astype(np.float32)
    expected = np.stack([volume[..., (regions.labels == r) & mask].mean(-1) for r in range(1, 5)], -1)
    np.testing.assert_allclose(regions.means(volume, mask), expected, rtol=1e-5)
    np.testing.assert_allclose(regions.means(volume[0, 0], mask), expected[0, 0], rtol=1e-5)


def test_a_region_outside_the_mask_is_nan():
    """A region without a voxel in the mask is NaN; other regions are unaffected."""
    labels = np.zeros((2, 2, 2), int)
    labels[0], labels[1] = 1, 2
    means = RegionMap(labels, ("a", "b"), (1.0, 1.0, 1.0)).means(np.full((2, 2, 2), 3.0), labels == 1)
    assert means[0] == 3
    assert np.isnan(means[1])


def test_a_measured_region_outside_the_field_of_view_is_nan():
    """Voxels that the target does not show do not count; a region that it shows less than nine tenths of is unknown."""
    labels = np.repeat([1, 2, 3], 100).reshape(3, 10, 10)
    target = np.full(labels.shape, 2.0, np.float32)
    target[1, 0, :5], target[2, :2] = INSIDE, INSIDE
    means = RegionMap(labels, ("a", "b", "c"), (1.0, 1.0, 1.0)).measured_means(target, labels > 0)
    np.testing.assert_array_equal(means, [2, 2, np.nan])


def test_a_map_of_measured_regions_lacks_those_hardly_in_view():
    """Their means are NaN, as are those of a region without a voxel in the mask; a meta-region has the others."""
    labels = np.repeat([1, 2, 3, 4], 100).reshape(4, 10, 10)
    names, mask = ("ctx-lh-cuneus", "ctx-rh-cuneus", "Left-Caudate", "Left-Putamen"), labels < 4
    shown = mask.copy()
    shown[0, :9], shown[1, 0, :9] = False, False
    measured = RegionMap(labels, names, (1.0, 1.0, 1.0)).measured(shown, mask)
    np.testing.assert_array_equal(measured.means(np.full(labels.shape, 2.0), shown), [np.nan, 2, 2, np.nan])
    np.testing.assert_array_equal(measured.sizes(shown), [0, 91, 100, 0])


def test_another_grid_is_refused():
    """A volume on another grid is an error, not an average over the wrong voxels."""
    regions = RegionMap(np.ones((2, 2, 2), int), ("a",), (1.0, 1.0, 1.0))
    with pytest.raises(ShapeError, match="grid"):
        regions.means(np.zeros((2, 2, 3)), np.ones((2, 2, 3), bool))


def test_only_grey_matter_large_enough_is_kept():
    """White matter, ventricles, unknown cortex and tiny regions are dropped; the rest keeps the order of the atlas."""
    names = {2: "Left-Cerebral-White-Matter", 4: "Left-Lateral-Ventricle", 10: "Left-Thalamus-Proper"}
    names |= {11: "Left-Caudate", 1000: "ctx-lh-unknown", 1005: "ctx-lh-cuneus"}
    sizes = dict.fromkeys(names, 2 * MINIMUM_VOXELS) | {11: MINIMUM_VOXELS - 1}
    flat = np.concatenate([np.full(size, label) for label, size in sizes.items()])
    regions = from_labels(flat.reshape(-1, 1, 1), names, (4.0, 4.0, 4.0))
    assert regions.names == ("Left-Thalamus-Proper", "ctx-lh-cuneus")
    np.testing.assert_array_equal(regions.labels.ravel(), 1 * (flat == 10) + 2 * (flat == 1005))


def test_the_atlas_on_the_model_grid(regions):
    """The default grid keeps nearly all of the 84 grey-matter regions, each in its hemisphere."""
    affine, shape = model_grid(PreprocessConfig())
    assert regions.labels.shape == tuple(shape)
    assert 80 <= len(regions.names) <= 84
    assert not any("White" in name or "Ventricle" in name or "unknown" in name for name in regions.names)
    for index, name in enumerate(regions.names, 1):
        x = np.argwhere(regions.labels == index) @ affine[0, :3] + affine[0, 3]
        assert len(x) >= MINIMUM_VOXELS
        assert (x.mean() < 0) == name.startswith(("Left", "ctx-lh")), name


def test_labels_keep_their_place_and_size(regions):
    """Nearest-neighbour resampling keeps volume and centre of a region to within the voxel size."""
    atlas, names = desikan_killiany()
    affine, _ = model_grid(PreprocessConfig())
    for region in ("ctx-lh-superiorfrontal", "Right-Putamen", "Left-Cerebellum-Cortex"):
        label = next(label for label, name in names.items() if name == region)
        fine = np.argwhere(np.asarray(atlas.dataobj) == label)
        coarse = np.argwhere(regions.labels == regions.names.index(region) + 1)
        assert len(coarse) * 64 == pytest.approx(len(fine), rel=0.1)
        centres = [(points @ a[:3, :3].T + a[:3, 3]).mean(0) for points, a in ((fine, atlas.affine), (coarse, affine))]
        np.testing.assert_allclose(*centres, atol=1.5)
