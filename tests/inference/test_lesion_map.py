"""Lesion map: principal components, people left out of their own reference, and the place of a peak."""

import numpy as np
import pytest

from dualflow.inference.lesion_map import SCALES_MM, LesionMap, principal_components, residual

PEOPLE, SHAPE = 20, (20, 22, 20)
FOLDS = [index % 5 for index in range(PEOPLE)]


@pytest.fixture(scope="module")
def noise():
    """Images of independent noise, which no component of other people explains."""
    return np.random.default_rng(0).normal(size=(PEOPLE, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(noise):
    return LesionMap.fit(noise, np.ones(noise.shape, bool), FOLDS, 4.0)


def test_components_explain_their_own_span():
    """Rows of rank 3 leave no residual; a new direction stays, and components are orthonormal."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 500)) + 7
    mean, components = principal_components(rows, 3)
    assert np.allclose(components @ components.T, np.eye(3))
    assert np.allclose(residual(rows[4], mean, components), 0, atol=1e-8)
    spike = np.eye(500)[17]
    assert residual(rows[4] + spike, mean, components)[17] > 0.9
    assert len(principal_components(rows, 30)[1]) == 6


def test_spread_is_of_people_left_out(fitted, noise):
    """The spread is that of smoothed noise; residuals in-sample would be smaller by about the root of a half."""
    from scipy.ndimage import gaussian_filter

    lesion_map, _ = fitted
    for scale, row in zip(SCALES_MM, lesion_map.spread, strict=True):
        smooth = np.stack([gaussian_filter(image * lesion_map.support, scale / 4) for image in noise])
        assert np.median(row) > 0.85 * smooth[:, lesion_map.support].std()


def test_peaks_of_training_people_are_those_of_new_people(fitted):
    """Cross-fitted peaks have the distribution of new people's."""
    lesion_map, peaks = fitted
    fresh = np.random.default_rng(2).normal(size=(PEOPLE, *SHAPE)).astype(np.float32)
    new = np.stack([lesion_map.deviation(image).peaks for image in fresh])
    assert peaks.shape == new.shape == (PEOPLE, 2 * len(SCALES_MM))
    assert np.abs(peaks.mean(axis=0) - new.mean(axis=0)).max() < 4 * new.std(axis=0).max() / np.sqrt(PEOPLE / 2)


@pytest.mark.parametrize("sign", [-1, 1])
def test_peak_has_place_and_sign(fitted, sign):
    """The peak of each sign lies at the lesion of that sign, and the map shows its sign."""
    image = np.zeros(SHAPE, np.float32)
    image[11:14, 8:11, 9:12] = 8 * sign
    deviation = fitted[0].deviation(image)
    peak = int(deviation.peaks.argmax())
    assert peak % 2 == (sign < 0)
    assert deviation.place(peak) == (12, 9, 10)
    assert np.sign(deviation.strongest()[12, 9, 10]) == sign


def test_arrays_restore_the_map(fitted):
    """The map is restored from its arrays."""
    lesion_map, _ = fitted
    restored = LesionMap.from_arrays(lesion_map.arrays(), lesion_map.spacing_mm)
    image = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    assert np.array_equal(restored.deviation(image).maps, lesion_map.deviation(image).maps)
