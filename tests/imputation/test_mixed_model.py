"""Mixed models: generalised least squares with the ratio of variances that the fit finds, also on its boundary."""

import numpy as np
import pytest

from dualflow.imputation.mixed_model import fit_random_intercepts


@pytest.mark.parametrize("between", [0.0, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_fits_are_generalised_least_squares(between: float, seed: int) -> None:
    """With seed 1 and no variance between subjects, statsmodels stops early and claims 0.77 of the standard error."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(30), 2)
    design = np.column_stack([np.ones(60), rng.normal(size=60)])
    outcome = 1.2 + 0.05 * (between * rng.normal(size=30)[subjects] + rng.normal(size=60))
    fits = fit_random_intercepts(outcome[:, None], design, subjects.astype(str))
    covariance = np.eye(60) + fits.ratio[0] * (subjects[:, None] == subjects)
    inverse = np.linalg.inv(covariance)
    of_design = np.linalg.inv(design.T @ inverse @ design)
    coefficients = of_design @ design.T @ inverse @ outcome
    residuals = outcome - design @ coefficients
    scale = residuals @ inverse @ residuals / 58
    assert fits.coefficients[0] == pytest.approx(coefficients)
    assert fits.variances[0] == pytest.approx(scale * of_design.diagonal())
