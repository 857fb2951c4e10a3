"""Draws are proper: they have the posterior's law, keep what terms and predictions say, and refuse what cannot work."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dualflow.errors import DataError
from dualflow.imputation.proper_draws import RegionScans, explained_share, proper_draws

DRAWS = 4000


def scans(people: int, draws: int = DRAWS, seed: int = 0, regions: int = 2) -> RegionScans:
    rng = np.random.default_rng(seed)
    terms = pd.DataFrame({"Intercept": 1.0, "age": rng.normal(size=people)})
    shared = rng.normal(size=(draws, people, 1))
    noise = 3 * (0.8 * shared + 0.6 * rng.normal(size=(draws, people, regions)))  # correlation 0.64, any size
    return RegionScans(terms, rng.normal(size=(people, regions)), noise)


def measured(known: RegionScans, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    effects = 1 + 2 * known.terms["age"].to_numpy()[:, None] + 0.5 * known.prediction
    return effects + rng.normal(0, 0.3, known.prediction.shape)


def test_draws_follow_the_bayesian_predictive_distribution() -> None:
    """With Gaussian noise and flat priors it is Student's t around the least squares prediction."""
    known, missing = scans(12), scans(3, seed=5)
    values = measured(known)
    draws = proper_draws(values, known, missing, 0)
    design, new = known.regressors(1), missing.regressors(1)
    solve = np.linalg.inv(design.T @ design)
    centre = new @ solve @ design.T @ values[:, 1]
    freedom = len(design) - design.shape[1]
    residual = values[:, 1] - design @ solve @ design.T @ values[:, 1]
    scale = np.sqrt(residual @ residual / freedom * (1 + np.einsum("ij,jk,ik->i", new, solve, new)))
    for scan in range(3):
        t = (draws[:, scan, 1] - centre[scan]) / scale[scan]
        assert stats.kstest(t, stats.t(freedom).cdf).pvalue > 0.001


def test_fixed_parameters_are_too_certain() -> None:
    known, missing = scans(10), scans(4, seed=5)
    values = measured(known)
    spreads = [proper_draws(values, known, missing, 0, proper=proper).std(axis=0).mean() for proper in (True, False)]
    assert spreads[0] > 1.15 * spreads[1]


def test_draws_are_joint_over_regions() -> None:
    known, missing = scans(60), scans(2, seed=5)
    draws = proper_draws(measured(known), known, missing, 0)
    assert np.corrcoef(draws[:, 0].T)[0, 1] == pytest.approx(0.64, abs=0.06)


def test_terms_are_not_shrunk_although_the_prediction_lacks_them() -> None:
    known, missing = scans(300, draws=20), scans(300, draws=20, seed=5)
    draws = proper_draws(measured(known), known, missing, 0)
    design = missing.regressors(0)
    effects = np.linalg.lstsq(design, draws[:, :, 0].T, rcond=None)[0].mean(axis=1)
    assert effects == pytest.approx([1, 2, 0.5], abs=0.06)


def test_a_constant_prediction_gets_no_coefficient() -> None:
    known, missing = scans(20), scans(3, seed=5)
    flat = [RegionScans(one.terms, np.full_like(one.prediction, 1.5), one.noise) for one in (known, missing)]
    assert np.isfinite(proper_draws(measured(known), *flat, 0)).all()
    assert explained_share(measured(known), flat[0]) == pytest.approx(0, abs=1e-12)


def test_a_region_outside_a_mask_is_unknown_there_alone() -> None:
    known, missing = scans(20), scans(3, seed=5)
    values = measured(known)
    missing.prediction[1, 0] = known.prediction[4, 1] = known.noise[:, 4, 1] = values[4, 1] = np.nan
    draws = proper_draws(values, known, missing, 0)
    assert np.isnan(draws[:, 1, 0]).all()
    assert np.isfinite(np.delete(draws[:, :, 0], 1, axis=1)).all()
    assert np.isfinite(draws[:, :, 1]).all()


def test_explained_share_is_that_of_the_truth() -> None:
    known = scans(2000, draws=2)
    assert explained_share(measured(known), known) == pytest.approx(0.25 / (0.25 + 0.09), abs=0.04)


def test_what_cannot_be_estimated_is_refused() -> None:
    known, missing = scans(6), scans(3, seed=5)
    with pytest.raises(DataError, match="6 scans with a measured target, expected at least 7"):
        proper_draws(measured(known), known, missing, 0)
    known = scans(20)
    silent = RegionScans(known.terms, known.prediction, 0 * known.noise)
    with pytest.raises(DataError, match="no samples"):
        proper_draws(measured(known), silent, missing, 0)
    one_group = RegionScans(known.terms.assign(age=0.0), known.prediction, known.noise)
    with pytest.raises(DataError, match="age is the same in all 20 scans"):
        proper_draws(measured(known), one_group, missing, 0)


def test_regions_that_cannot_be_fitted_are_unknown_and_the_others_drawn() -> None:
    """A group without a value in the region, measurements that do not vary, noise that is 0 there."""
    known, missing = scans(30, draws=20, regions=4), scans(3, draws=20, seed=5, regions=4)
    known, missing = (
        RegionScans(one.terms.assign(group=np.arange(len(one.terms)) % 3 == 0).astype(float), one.prediction, one.noise)
        for one in (known, missing)
    )
    values = measured(known)
    values[known.terms["group"] == 1, 1] = np.nan
    values[:, 2] = 1.0
    known.noise[:, :, 3] = 0.0
    draws = proper_draws(values, known, missing, 0)
    assert np.isfinite(draws[:, :, 0]).all()
    assert np.isnan(draws[:, :, 1:]).all()
    assert np.isfinite(explained_share(values, known))
