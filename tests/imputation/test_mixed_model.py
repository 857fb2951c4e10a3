"""Mixed models: generalised least squares with the ratio of variances that the fit finds, also on its boundary."""

import warnings

import numpy as np
import pytest
import statsmodels.api as sm

from dualflow.imputation.mixed_model import fit_random_intercepts


@pytest.mark.parametrize("between", [0.0, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_fits_are_generalised_least_squares(between: float, seed: int) -> None:
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


@pytest.mark.parametrize("between", [0.2, 1.0, 5.0])
def test_fits_are_those_of_statsmodels(between: float) -> None:
    """Subjects have one, two or three scans; both searches find the same maximum of the restricted likelihood."""
    rng = np.random.default_rng(3)
    subjects = np.repeat(np.arange(40), np.arange(40) % 3 + 1)
    design = np.column_stack([np.ones(len(subjects)), rng.normal(size=len(subjects)), rng.normal(size=40)[subjects]])
    noise = between * rng.normal(size=(40, 4))[subjects] + rng.normal(size=(len(subjects), 4))
    outcomes = 1.2 + 0.05 * noise
    fits = fit_random_intercepts(outcomes, design, subjects.astype(str))
    for index, outcome in enumerate(outcomes.T):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = sm.MixedLM(outcome, design, groups=subjects).fit(reml=True)
        assert fits.coefficients[index] == pytest.approx(fit.fe_params, abs=1e-5)
        assert fits.ratio[index] == pytest.approx(fit.cov_re[0, 0] / fit.scale, rel=1e-2, abs=1e-4)
        assert np.sqrt(fits.variances[index]) == pytest.approx(fit.bse[:3], rel=0.05)


def test_equal_scans_of_a_subject_have_a_result() -> None:
    """Without a variance within subjects the errors are those of one scan per subject."""
    rng = np.random.default_rng(4)
    values, age = rng.normal(size=(30, 2)), rng.normal(size=30)
    subjects = np.repeat(np.arange(30), 2)
    design = np.column_stack([np.ones(30), age])
    fits = fit_random_intercepts(values[subjects], design[subjects], subjects.astype(str))
    single = sm.OLS(values[:, 0], design).fit()
    assert fits.coefficients[0] == pytest.approx(single.params)
    # The restricted likelihood counts 60 scans, of which 30 tell nothing.
    assert np.sqrt(fits.variances[0] * 58 / 28) == pytest.approx(single.bse, rel=1e-3)


def test_a_year_and_its_square_lose_no_digits() -> None:
    """The same model in years since 2007 has the same effect of the square."""
    rng = np.random.default_rng(6)
    subjects = np.repeat(np.arange(40), 3)
    year = 2005.0 + rng.integers(0, 6, 40)[subjects] + np.tile([0, 1, 2], 40)
    outcomes = 1.2 + 0.05 * rng.normal(size=(40, 2))[subjects] + 0.05 * rng.normal(size=(120, 2))
    fits = [
        fit_random_intercepts(outcomes, np.column_stack([np.ones(120), one, one**2]), subjects.astype(str))
        for one in (year, year - 2007)
    ]
    assert fits[0].coefficients[:, 2] == pytest.approx(fits[1].coefficients[:, 2], rel=1e-4)
    assert fits[0].variances[:, 2] == pytest.approx(fits[1].variances[:, 2], rel=1e-4)
