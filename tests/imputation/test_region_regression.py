"""Slopes of regions inform each other as far as they are alike, and draws of them are calibrated."""

import numpy as np
import pandas as pd
import pytest

from dualflow.imputation.proper_draws import RegionScans, proper_draws
from dualflow.imputation.region_regression import LEAST_REGIONS, MOST_MOVED, RegionRegression

REGIONS = 40
SCANS = 40


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Errors with a correlation of 0.5 between regions."""
    shared = rng.normal(size=(*shape, 1))
    return np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=(*shape, REGIONS))


class Study:
    """Slopes of a term with mean 0.5 and a standard deviation over regions, and of the prediction."""

    def __init__(self, differ: float, seed: int, scans: int = SCANS) -> None:
        rng = np.random.default_rng(seed)
        self.slopes = 0.5 + differ * rng.normal(size=REGIONS)
        self.terms = np.repeat([[0.0], [1.0]], scans // 2, axis=0)
        self.prediction = rng.normal(size=(scans, REGIONS))
        self.values = 2 + self.terms * self.slopes + 0.8 * self.prediction + noise(rng, scans)
        self.noise = 3 * noise(rng, 20, scans)

    def regression(self, known: np.ndarray | None = None) -> RegionRegression:
        all_known = np.ones_like(self.values, dtype=bool)
        return RegionRegression(self.terms, self.prediction, all_known if known is None else known, self.noise)

    def least_squares(self, region: int, rows: np.ndarray | None = None) -> np.ndarray:
        rows = np.ones(len(self.terms), bool) if rows is None else rows
        design = np.column_stack([np.ones(rows.sum()), self.terms[rows], self.prediction[rows, region]])
        return np.linalg.lstsq(design, self.values[rows, region], rcond=None)[0]


def test_slopes_of_alike_regions_are_estimated_together() -> None:
    """Their errors come near to those of the common mean."""
    errors = []
    for seed in range(20):
        study = Study(0.0, seed)
        fitted = study.regression().fit(study.values)
        single = [study.least_squares(region)[1] for region in range(REGIONS)]
        errors.append([np.std(fitted.slopes[:, 0]), np.std(single)])
    assert np.mean(errors, axis=0)[0] < 0.7 * np.mean(errors, axis=0)[1]


def test_no_slope_moves_far() -> None:
    """An effect that one region lacks is not drawn into it: its slope moves by a part of a standard error at most."""
    study = Study(0.0, 0)
    study.values[:, 0] -= study.terms[:, 0] * 5
    fitted = study.regression().fit(study.values)
    for region in range(3):
        single = study.least_squares(region)
        design = np.column_stack([np.ones(SCANS), study.terms, study.prediction[:, region]])
        error = fitted.spread[region] * np.sqrt(np.linalg.inv(design.T @ design).diagonal()[1:])
        assert fitted.limit[region, 1] == pytest.approx(MOST_MOVED * error[1])
        assert abs(fitted.slopes[region, 1] - single[2]) <= MOST_MOVED * error[1] * (1 + 1e-9)
        # The slope of the term is estimated for the moved slope of the prediction.
        assert abs(fitted.slopes[region, 0] - single[1]) < 1.1 * MOST_MOVED * error[0]


def test_slopes_that_are_particular_stay() -> None:
    study = Study(5.0, 0)
    fitted = study.regression().fit(study.values)
    single = [study.least_squares(region)[1] for region in range(REGIONS)]
    assert fitted.slopes[:, 0] == pytest.approx(np.array(single), abs=0.25)
    assert fitted.between[0, 0] == pytest.approx(study.slopes.var(), rel=0.15)


def test_few_regions_are_fitted_alone() -> None:
    """With too few to tell how much they differ, each region has its least squares; unknown scans do not count."""
    study, few = Study(0.0, 0), LEAST_REGIONS - 1
    known = np.random.default_rng(0).random((SCANS, REGIONS)) < 0.9
    study.values[~known] = study.prediction[~known] = study.noise[:, ~known] = np.nan
    part = RegionRegression(study.terms, study.prediction[:, :few], known[:, :few], study.noise[:, :, :few])
    fitted = part.fit(study.values[:, :few])
    for region in range(few):
        rows = known[:, region]
        _, *slopes = study.least_squares(region, rows)
        assert fitted.slopes[region] == pytest.approx(slopes)
        expected = part.values(fitted, study.terms, study.prediction[:, :few])[rows, region]
        assert np.isfinite(expected).all()
        errors = study.values[rows, region] - expected
        assert fitted.spread[region] == pytest.approx(np.sqrt(errors @ errors / (rows.sum() - 3)))


@pytest.mark.parametrize("differ", [0.0, 0.2, 1.0])
def test_draws_of_slopes_are_calibrated(differ: float) -> None:
    """However much the regions differ, 90 % intervals of the drawn values' group difference hold the truth in 90 %."""
    inside = []
    for seed in range(40):
        study = Study(differ, seed)
        terms = pd.DataFrame({"Intercept": 1.0, "group": study.terms[:, 0]})
        ends = RegionScans(
            pd.DataFrame({"Intercept": 1.0, "group": [0.0, 1.0]}), np.zeros((2, REGIONS)), np.zeros((200, 2, REGIONS))
        )
        rng = np.random.default_rng(seed + 1000)
        known = RegionScans(terms, study.prediction, noise(rng, 200, SCANS))
        draws = proper_draws(study.values, known, ends, seed)
        difference = draws[:, 1] - draws[:, 0]
        low, high = np.quantile(difference, [0.05, 0.95], axis=0)
        inside.append(np.mean((low < study.slopes) & (study.slopes < high)))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.06)
