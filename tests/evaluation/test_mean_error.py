"""Maps of the mean error over people."""

import numpy as np

from dualflow.evaluation.mean_error import MeanError


def test_signed_and_absolute_errors_are_averaged_inside_the_masks():
    """Opposite errors cancel in the bias alone, and voxels that most masks lack are 0."""
    errors, mask = MeanError((1, 1, 3)), np.array([[[True, True, False]]])
    few = np.array([[[True, False, True]]])
    errors.add(np.full((1, 1, 3), 3.0), np.full((1, 1, 3), 1.0), mask, weight=1)
    errors.add(np.full((1, 1, 3), 0.0), np.full((1, 1, 3), 1.0), mask, weight=1)
    errors.add(np.full((1, 1, 3), 0.0), np.full((1, 1, 3), 1.0), few, weight=1)
    maps = errors.maps()
    np.testing.assert_allclose(maps["bias"].ravel(), [0.0, 0.5, 0.0])
    np.testing.assert_allclose(maps["error"].ravel(), [4 / 3, 1.5, 0.0], rtol=1e-6)


def test_each_person_counts_once_whatever_the_number_of_visits():
    """A person with six visits weighs as much as one with a single visit, also in the share of the masks."""
    errors, target = MeanError((1, 1, 2)), np.zeros((1, 1, 2))
    for _ in range(6):
        errors.add(np.ones((1, 1, 2)), target, np.array([[[True, False]]]), weight=1 / 6)
    errors.add(np.array([[[0.0, 3.0]]]), target, np.ones((1, 1, 2), bool), weight=1)
    np.testing.assert_allclose(errors.maps()["error"].ravel(), [0.5, 3.0], rtol=1e-6)
