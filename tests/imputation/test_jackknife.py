"""The jackknife's variances are those of analyses without a subject, and those over studies."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from dualflow.imputation.group_models import MULTIPLE, RUBIN, analyse_regions
from dualflow.imputation.jackknife import carriers, fixed_weights, jackknife
from dualflow.imputation.proper_draws import RegionScans, proper_draws
from dualflow.imputation.replicates import Replicates, replicate

RNG = np.random.default_rng(0)


def nothing_changes(weight: np.ndarray, regions: int) -> Replicates:
    """Every scan is measured, and a group of its own."""
    scans = len(weight)
    return Replicates(np.arange(scans), weight, np.zeros((scans, scans, regions)), np.zeros((2, scans, regions)))


def test_measured_scans_have_the_robust_variance_of_least_squares() -> None:
    design, values = np.column_stack([np.ones(25), RNG.normal(size=25)]), RNG.normal(size=(25, 2))
    estimator = fixed_weights(design, np.arange(25).astype(str), values)
    leverage = np.diag(design @ np.linalg.pinv(design))
    variance = jackknife(estimator, values, nothing_changes(1 - leverage, 2)).variance
    for region in range(2):
        robust = sm.OLS(values[:, region], design).fit(cov_type="HC2")
        assert variance[region] == pytest.approx(np.square(robust.bse))


def test_several_scans_of_a_subject_have_the_weights_of_a_mixed_model() -> None:
    subjects = np.repeat(np.arange(20), np.arange(20) % 3 + 1).astype(str)
    shared = RNG.normal(size=20)[subjects.astype(int)]
    design = np.column_stack([np.ones(len(subjects)), RNG.normal(size=len(subjects))])
    values = (design @ [1.0, 2.0] + shared + 0.5 * RNG.normal(size=len(subjects)))[:, None]
    estimator = fixed_weights(design, subjects, values)
    fit = sm.MixedLM(values[:, 0], design, groups=subjects).fit()
    everyone = np.ones(len(subjects), dtype=bool)
    assert estimator.coefficients(values, everyone)[0] == pytest.approx(fit.fe_params, rel=1e-6)


def test_errors_by_shrinkage_add_their_variance() -> None:
    design, values = np.ones((10, 1)), RNG.normal(size=(10, 1))
    estimator = fixed_weights(design, np.arange(10).astype(str), values)
    plain = nothing_changes(np.ones(10), 1)
    shifted = replace(plain, shrinkage=np.array([[[-1.0]] * 10, [[1.0]] * 10]))
    more = jackknife(estimator, values, shifted).variance - jackknife(estimator, values, plain).variance
    assert more == pytest.approx(2.0)


def test_the_subjects_of_a_small_group_carry_its_effect() -> None:
    """Those of the two coefficients `Intercept` and `group`: four patients, and as many controls as there are."""
    design = np.column_stack([np.ones(104), (np.arange(104) < 4).astype(float)])
    values = np.tile([[1.0], [-1.0]], (52, 3))
    everyone = jackknife(
        fixed_weights(design, np.arange(104).astype(str), values), values, nothing_changes(np.ones(104), 3)
    )
    assert everyone.shares.sum(axis=1) == pytest.approx(1)
    assert carriers(everyone.shares) == pytest.approx([100, 4], rel=0.1)
    unknown = np.full((1, *everyone.shares.shape[1:]), np.nan)
    assert carriers(np.concatenate([everyone.shares, unknown])) == pytest.approx(carriers(everyone.shares))


def test_a_coefficient_that_one_subject_tells_has_no_jackknife() -> None:
    """Without the only patient there is no estimate that could differ."""
    design = np.column_stack([np.ones(10), np.arange(10) == 0]).astype(float)
    values = RNG.normal(size=(10, 2))
    result = jackknife(
        fixed_weights(design, np.arange(10).astype(str), values), values, nothing_changes(np.ones(10), 2)
    )
    assert np.isnan(result.variance).tolist() == [[False, True]] * 2
    assert np.isnan(carriers(result.shares)).tolist() == [False, True]


def simulated_p_values(group: np.ndarray, observed: np.ndarray, study: int) -> pd.DataFrame:
    """Analysis of 6 regions that do not depend on the group, but on a source and on errors that regions share."""
    rng, (people, regions, draws) = np.random.default_rng(study), (len(group), 6, 10)
    design = pd.DataFrame({"Intercept": 1.0, "group": group.astype(float)})
    source = rng.normal(size=(people, regions))

    def errors(*shape: int) -> np.ndarray:
        return 0.8 * rng.normal(size=(*shape, 1)) + 0.6 * rng.normal(size=(*shape, regions))

    target, noise = source + errors(people), errors(draws, people)
    noise -= noise.mean(axis=0)
    known, missing = (
        RegionScans(design[rows].reset_index(drop=True), source[rows], noise[:, rows]) for rows in (observed, ~observed)
    )
    tables = np.repeat(target[None], draws, axis=0)
    tables[:, ~observed] = proper_draws(target[observed], known, missing, study)
    replicates = replicate(target[observed], known, missing, observed, ~observed, np.arange(people), study)
    names = [f"r{index}" for index in range(regions)]
    return analyse_regions(tables, observed, design, [f"{n}" for n in range(people)], names, replicates)


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "few"), [(2, True), (20, False)])
def test_a_group_of_few_is_found_different_no_more_often_than_said(patients, few) -> None:
    """The jackknife of two patients varies so much that 9 % of its intervals miss 0."""
    group, observed = np.arange(60) < patients, np.arange(60) < 40
    tables = [simulated_p_values(group, observed, study) for study in range(80)]
    rows = pd.concat([table[table["method"] == MULTIPLE] for table in tables])
    assert (rows["p"] < 0.05).mean() < 0.07
    assert (rows["carriers"].median() < 10) == few


@pytest.mark.slow
def test_variances_are_those_over_studies_where_rubins_rules_overstate_them() -> None:
    """The imputation knows the source, which the analysis does not: half of the people have no target."""
    people, draws, studies = 40, 10, 150
    estimates, errors = [], {MULTIPLE: [], RUBIN: []}
    for study in range(studies):
        rng = np.random.default_rng(study)
        design = pd.DataFrame({"Intercept": 1.0, "group": (np.arange(people) % 2).astype(float)})
        source = rng.normal(size=(people, 3))
        target = source + 0.5 * rng.normal(size=(people, 3))
        noise = rng.normal(size=(draws, people, 3))
        noise -= noise.mean(axis=0)
        observed = rng.permutation(people) < people // 2
        known, missing = (
            RegionScans(design[rows].reset_index(drop=True), source[rows], noise[:, rows])
            for rows in (observed, ~observed)
        )
        tables = np.repeat(target[None], draws, axis=0)
        tables[:, ~observed] = proper_draws(target[observed], known, missing, study)
        replicates = replicate(target[observed], known, missing, observed, ~observed, np.arange(people), study)
        subjects = [str(index) for index in range(people)]
        table = analyse_regions(tables, observed, design, subjects, ["a", "b", "c"], replicates)
        estimates.append(table.loc[table["method"] == MULTIPLE, "estimate"].to_numpy())
        for method, all_errors in errors.items():
            all_errors.append(np.square(table.loc[table["method"] == method, "se"]).mean())
    true = np.var(estimates, axis=0, ddof=1).mean()
    jackknife, rubin = (np.mean(errors[method]) / true for method in (MULTIPLE, RUBIN))
    assert 0.9 < jackknife < 1.25
    assert rubin > jackknife
