"""Mixed models: generalised least squares with the ratio of variances that the fit finds, also on its boundary."""

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import t

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


@pytest.mark.parametrize("visits", [2, 3, 5])
def test_degrees_of_freedom_are_exact_in_a_balanced_study(visits: int) -> None:
    """Between subjects they count subjects, within them scans, as in an analysis of variance with two strata."""
    rng = np.random.default_rng(visits)
    subjects = np.repeat(np.arange(25), visits)
    time = np.tile(np.arange(visits), 25)
    design = np.column_stack([np.ones(25 * visits), rng.normal(size=25)[subjects], time - time.mean()])
    outcomes = 1.2 + 0.1 * rng.normal(size=(25, 4))[subjects] + 0.05 * rng.normal(size=(25 * visits, 4))
    fits = fit_random_intercepts(outcomes, design, subjects.astype(str))
    assert (fits.ratio > 0).all()
    expected = np.tile([23.0, 23.0, 25.0 * (visits - 1) - 1], (4, 1))
    assert fits.freedom == pytest.approx(expected, rel=1e-6)


def test_degrees_of_freedom_follow_from_the_information_matrix() -> None:
    """Those of dense matrices, for a study of one to four scans per subject."""
    rng = np.random.default_rng(5)
    subjects = np.repeat(np.arange(20), np.arange(20) % 4 + 1)
    design = np.column_stack([np.ones(len(subjects)), rng.normal(size=len(subjects)), rng.normal(size=20)[subjects]])
    outcome = 1.2 + 0.05 * rng.normal(size=20)[subjects] + 0.05 * rng.normal(size=len(subjects))
    fits = fit_random_intercepts(outcome[:, None], design, subjects.astype(str))
    derivatives = [np.eye(len(subjects)), (subjects[:, None] == subjects).astype(float)]
    inverse = np.linalg.inv(derivatives[0] + fits.ratio[0] * derivatives[1])
    of_design = np.linalg.inv(design.T @ inverse @ design)
    projection = inverse - inverse @ design @ of_design @ design.T @ inverse
    information = [[np.trace(projection @ a @ projection @ b) / 2 for b in derivatives] for a in derivatives]
    slopes = np.array(
        [np.diag(of_design @ design.T @ inverse @ part @ inverse @ design @ of_design) for part in derivatives]
    )
    spread = np.einsum("ik,ij,jk->k", slopes, np.linalg.inv(information), slopes)
    assert fits.freedom[0] == pytest.approx(2 * np.diag(of_design) ** 2 / spread)


def test_few_repeated_subjects_leave_few_degrees_of_freedom() -> None:
    """With 4 of 40 subjects scanned twice, an effect of time that is not there is found in 5 % of outcomes."""
    rng = np.random.default_rng(0)
    subjects = np.array([*range(40), *range(4)])
    design = np.column_stack([np.ones(44), rng.normal(size=40)[subjects], np.repeat([0.0, 1.0], [40, 4])])
    outcomes = 0.1 * rng.normal(size=(40, 600))[subjects] + 0.03 * rng.normal(size=(44, 600))
    fits = fit_random_intercepts(outcomes, design, subjects.astype(str))
    ratios = fits.coefficients[:, 2] / np.sqrt(fits.variances[:, 2])
    found = 2 * t.sf(np.abs(ratios), fits.freedom[:, 2]) < 0.05
    assert 0.025 < found.mean() < 0.075
    assert 2 < np.median(fits.freedom[:, 2]) < 4
    assert (2 * t.sf(np.abs(ratios), 37) < 0.05).mean() > 0.1, "counting subjects would be wrong here"


def test_an_effect_of_the_only_repeated_subject_has_no_variance() -> None:
    """Nothing tells how much its scans vary; the other effects keep theirs."""
    rng = np.random.default_rng(0)
    subjects = np.array([*range(40), 0])
    design = np.column_stack([np.ones(41), rng.normal(size=40)[subjects], np.repeat([0.0, 1.0], [40, 1])])
    fits = fit_random_intercepts(rng.normal(size=(41, 20)), design, subjects.astype(str))
    assert np.isnan(fits.variances).tolist() == [[False, False, True]] * 20
    assert fits.freedom[:, :2] == pytest.approx(38.0)


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
