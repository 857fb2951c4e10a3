"""Template and brain mask equal nilearn's bit for bit."""

from __future__ import annotations

import nilearn.datasets
import numpy as np
import pytest

from dualflow.imaging.mni_template import BRAIN_THRESHOLD, coarse_template, template_map

LOADERS = {
    "t1": nilearn.datasets.load_mni152_template,
    "gm": nilearn.datasets.load_mni152_gm_template,
    "wm": nilearn.datasets.load_mni152_wm_template,
}


def assert_same(volume, image):
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj, dtype=np.float32))
    np.testing.assert_array_equal(volume.affine, image.affine)


@pytest.mark.parametrize("name", LOADERS)
def test_maps_at_1_mm_equal_nilearns(name):
    """Maps are scaled to a maximum of 1."""
    assert_same(template_map(name), LOADERS[name](resolution=1))


def test_the_brain_mask_equals_nilearns():
    """Both use the same threshold."""
    mask = nilearn.datasets.load_mni152_brain_mask(resolution=1)
    np.testing.assert_array_equal(template_map("t1").array > BRAIN_THRESHOLD, np.asarray(mask.dataobj) > 0)


def test_the_coarse_template_equals_nilearns():
    """Both interpolate with cubic splines and clip to the range of the fine template."""
    image, mask = coarse_template()
    assert_same(image, nilearn.datasets.load_mni152_template(resolution=3))
    assert_same(mask, nilearn.datasets.load_mni152_brain_mask(resolution=3))
