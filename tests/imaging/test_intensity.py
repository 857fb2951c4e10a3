"""Intensity normalisation: fit, clipping, inversion and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dualflow.errors import IntensityError
from dualflow.imaging import intensity
from dualflow.modalities import MODALITIES

RNG = np.random.default_rng(0)
VALUES = RNG.gamma(9.0, 100.0, (12, 12, 12)).astype(np.float32)
# Factor of VALUES for normalisers that depend on absolute values.
SCALES = {"hounsfield": 0.04}
MASK = RNG.random(VALUES.shape) > 0.5


def test_every_modality_has_its_normaliser():
    """MODALITIES refers to existing normalisers only."""
    rows = [*MODALITIES.values(), *(row.as_target() for row in MODALITIES.values())]
    assert {row.normaliser for row in rows} <= set(intensity.NORMALISERS)


@pytest.mark.parametrize("name", sorted(intensity.NORMALISERS))
def test_the_record_inverts_the_normalisation(name):
    """The record, read back from JSON, restores unclipped values to float32 precision."""
    raw = np.float32(SCALES.get(name, 1)) * VALUES
    values, record = intensity.normalise(raw, MASK, name)
    assert not values[~MASK].any()
    restored = intensity.invert(values, json.loads(json.dumps(record)))
    unclipped = MASK if record["clip"] is None else MASK & (values > -0.5) & (values < 1.5)
    assert unclipped.sum() > 0.98 * MASK.sum()
    np.testing.assert_allclose(restored[unclipped], raw[unclipped], rtol=1e-5)


@pytest.mark.parametrize("name", ["robust", "suvr"])
def test_only_the_background_is_zero(name):
    """An empty slice within the mask, as at the edge of the field of view, remains part of the brain."""
    raw = VALUES.copy()
    raw[3] = 0
    values, _ = intensity.normalise(raw, MASK, name)
    assert ((values != 0) == MASK).all()
    np.testing.assert_allclose(values[3][MASK[3]], 0, atol=1e-5)


def test_robust_maps_percentiles_of_the_brain():
    """0.5 % of the brain lies below 0 and 0.5 % above 1, independent of scale, outliers and voxels outside."""
    outlier = VALUES.copy()
    outlier[tuple(np.argwhere(MASK)[0])] = 1e6
    values, _ = intensity.normalise(np.where(MASK, outlier, 1e7).astype(np.float32), MASK, "robust")
    assert (values[MASK] < 0).mean() == pytest.approx(0.005, abs=0.002)
    assert (values[MASK] > 1).mean() == pytest.approx(0.005, abs=0.002)
    assert values.max() == 1.5
    scaled, _ = intensity.normalise(7 * VALUES + 3, MASK, "robust")
    plain, _ = intensity.normalise(VALUES, MASK, "robust")
    np.testing.assert_allclose(scaled[MASK], plain[MASK], atol=1e-5)


def test_the_peak_of_white_matter_does_not_depend_on_lesions_or_scale():
    """A tenth of bright lesion moves percentiles, not the peak."""
    tissue = RNG.normal(400, 20, (20, 20, 20)).astype(np.float32)
    inside = np.ones(tissue.shape, bool)
    lesions = np.where(RNG.random(tissue.shape) < 0.1, np.float32(700), tissue)
    for scan in (tissue, lesions, 3 * lesions):
        values, record = intensity.normalise(scan, inside, "white_matter")
        assert np.median(values[values < 0.7]) == pytest.approx(0.5, abs=0.015)
        assert record["slope"] == 2 * record["peak"]


def test_suvr_has_mean_one_in_the_reference_region():
    """The mean uptake in the brain is 1 SUVR, and the recorded slope is the reference value."""
    values, record = intensity.normalise(VALUES, MASK, "suvr")
    assert values[MASK].mean() == pytest.approx(1, abs=1e-6)
    assert record["slope"] == pytest.approx(VALUES[MASK].mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "mask", "name", "words"),
    [
        (VALUES, np.zeros_like(MASK), "suvr", "no voxel"),
        (-VALUES, MASK, "suvr", "above 0"),
        (np.ones_like(VALUES), MASK, "robust", "contrast"),
        (np.ones_like(VALUES), MASK, "white_matter", "contrast"),
        (-VALUES, MASK, "white_matter", "more than 0"),
    ],
)
def test_values_that_cannot_be_normalised_are_refused(values, mask, name, words):
    """The error names the image; the mask is empty, the uptake is negative, or the brain has no contrast."""
    with pytest.raises(IntensityError, match=words) as caught:
        intensity.normalise(values, mask, name, "scan.nii.gz")
    assert str(caught.value).startswith("scan.nii.gz")


def test_hounsfield_is_the_same_map_for_every_scan():
    """Water is 0, 80 HU is 1, bone is clipped, and values with an offset of 1024 are refused."""
    scan = np.float32(SCALES["hounsfield"]) * VALUES
    water, bright, bone = (tuple(index) for index in np.argwhere(MASK)[:3])
    for scale in (1.0, 1.3):
        raw = np.float32(scale) * scan
        raw[water], raw[bright], raw[bone] = 0.0, 80.0, 1900.0
        values, record = intensity.normalise(raw, MASK, "hounsfield")
        assert (record["slope"], record["intercept"]) == (80.0, 0.0)
        assert [values[index] for index in (water, bright, bone)] == [intensity.INSIDE, 1.0, 1.5]
    with pytest.raises(IntensityError, match=r"ct\.nii: the brain's median is 1\d\d\d, expected 0 to 80 Hounsfield"):
        intensity.normalise(scan + 1024, MASK, "hounsfield", "ct.nii")
