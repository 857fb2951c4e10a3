"""Maps of the mean error over people."""

import numpy as np

from dualflow.evaluation.mean_error import MeanError


def test_signed_and_absolute_errors_are_averaged_inside_the_masks():
    """Opposite errors cancel in the bias alone, and voxels that most masks lack are 0."""
    errors, mask = MeanError((1, 1, 3)), np.array([[[True, True, False]]])
    few = np.array([[[True, False, True]]])
    errors.add(np.full((1, 1, 3), 3.0), np.full((1, 1, 3), 1.0), mask)
    errors.add(np.full((1, 1, 3), 0.0), np.full((1, 1, 3), 1.0), mask)
    errors.add(np.full((1, 1, 3), 0.0), np.full((1, 1, 3), 1.0), few)
    maps = errors.maps()
    np.testing.assert_allclose(maps["bias"].ravel(), [0.0, 0.5, 0.0])
    np.testing.assert_allclose(maps["error"].ravel(), [4 / 3, 1.5, 0.0], rtol=1e-6)
