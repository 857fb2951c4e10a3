"""Slopes are moved to 0 as far as the data agree, and draws of them are calibrated."""

import numpy as np
import pandas as pd
import pytest

from dualflow.imputation.proper_draws import RegionScans, proper_draws
from dualflow.imputation.region_regression import MOST_MOVED, RegionRegression

REGIONS = 40
SCANS = 40


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Errors with a correlation of 0.5 between regions."""
    shared = rng.normal(size=(*shape, 1))
    return np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=(*shape, REGIONS))


class Study:
    """Differences from a model that is wrong about a term, by slopes with a standard deviation over regions."""

    def __init__(self, wrong: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.slopes = wrong * rng.normal(size=REGIONS)
        self.terms = np.column_stack([np.repeat([0.0, 1.0], SCANS // 2), rng.normal(70, 8, SCANS)])
        self.values = 2 + self.terms[:, :1] * self.slopes + noise(rng, SCANS)
        self.noise = 3 * noise(rng, 20, SCANS)
        self.known = np.ones_like(self.values, dtype=bool)

    def regression(self) -> RegionRegression:
        return RegionRegression(self.terms, self.known, self.noise)

    def least_squares(self, region: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Slopes, their standard errors and the residual standard deviation."""
        rows = self.known[:, region]
        design = np.column_stack([np.ones(rows.sum()), self.terms[rows]])
        solve = np.linalg.pinv(design)
        coefficients = solve @ self.values[rows, region]
        residual = self.values[rows, region] - design @ coefficients
        spread = np.sqrt(residual @ residual / (rows.sum() - 3))
        return coefficients[1:], spread * np.linalg.norm(solve, axis=1)[1:], spread


def test_slopes_move_to_0_where_the_model_is_right() -> None:
    """By half a standard error at most, and no further than 0."""
    study = Study(0.0, 0)
    fitted = study.regression().fit(study.values)
    for region in range(REGIONS):
        single, error, _ = study.least_squares(region)
        moved = np.sign(single) * np.minimum(fitted.share[0] * np.abs(single), MOST_MOVED * error)
        assert fitted.slopes[region] == pytest.approx(single - moved)
    assert fitted.share[0, 0] > 0.7


def test_slopes_stay_where_the_model_is_wrong() -> None:
    study = Study(5.0, 0)
    fitted = study.regression().fit(study.values)
    single = np.stack([study.least_squares(region)[0] for region in range(REGIONS)])
    assert fitted.slopes[:, 0] == pytest.approx(single[:, 0], abs=0.1)
    assert fitted.between[0, 0] == pytest.approx(np.square(study.slopes).mean(), rel=0.15)


def test_unknown_scans_do_not_count() -> None:
    study = Study(1.0, 0)
    study.known = np.random.default_rng(0).random((SCANS, REGIONS)) < 0.9
    study.values[~study.known] = study.noise[:, ~study.known] = np.nan
    regression = study.regression()
    fitted = regression.fit(study.values)
    for region in range(REGIONS):
        single, error, spread = study.least_squares(region)
        assert fitted.spread[region] == pytest.approx(spread)
        assert fitted.limit[region] == pytest.approx(MOST_MOVED * error)
        assert (np.abs(fitted.slopes[region] - single) <= MOST_MOVED * error * (1 + 1e-9)).all()
        rows = study.known[:, region]
        expected = regression.values(fitted, study.terms)[rows, region]
        assert expected.mean() == pytest.approx(study.values[rows, region].mean())
    assert np.square(regression.noise).sum(axis=(0, 1)) == pytest.approx(20 * study.known.sum(axis=0))


def test_a_study_without_terms_has_a_level_alone() -> None:
    study = Study(0.0, 0)
    regression = RegionRegression(study.terms[:, :0], study.known, study.noise)
    fitted = regression.fit(study.values)
    assert regression.values(fitted, np.empty((2, 0)))[1] == pytest.approx(study.values.mean(axis=0))
    assert fitted.spread == pytest.approx(study.values.std(axis=0, ddof=1))


@pytest.mark.parametrize("wrong", [0.0, 0.2, 1.0])
def test_draws_of_slopes_are_calibrated(wrong: float) -> None:
    """However wrong the model is, 90 % intervals of the drawn values' group difference hold the truth in 90 %."""
    inside = []
    for seed in range(40):
        study = Study(wrong, seed)
        terms = pd.DataFrame({"Intercept": 1.0, "group": study.terms[:, 0]})
        ends = RegionScans(
            pd.DataFrame({"Intercept": 1.0, "group": [0.0, 1.0]}), np.zeros((2, REGIONS)), np.zeros((200, 2, REGIONS))
        )
        rng = np.random.default_rng(seed + 1000)
        known = RegionScans(terms, np.zeros((SCANS, REGIONS)), noise(rng, 200, SCANS))
        draws = proper_draws(study.values, known, ends, seed)
        difference = draws[:, 1] - draws[:, 0]
        low, high = np.quantile(difference, [0.05, 0.95], axis=0)
        inside.append(np.mean((low < study.slopes) & (study.slopes < high)))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.06)
