"""Group models: equal to statsmodels on one table, pooled over several, and beside them the cheap methods."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import false_discovery_control

from dualflow.evaluation.statistics import holm
from dualflow.imputation import group_models
from dualflow.imputation.group_models import METHODS, analyse_regions
from dualflow.imputation.replicates import Replicates

MULTIPLE, RUBIN, COMPLETE, SINGLE = METHODS
REGIONS = [f"r{index}" for index in range(6)]


def study(people: int = 40, draws: int = 10, hidden: int = 20, seed: int = 0):
    rng = np.random.default_rng(seed)
    design = pd.DataFrame({"Intercept": 1.0, "age": rng.normal(size=people), "sex=M": rng.integers(0, 2, people)})
    values = np.repeat((design["age"].to_numpy()[:, None] + rng.normal(size=(people, len(REGIONS))))[None], draws, 0)
    observed = np.arange(people) >= hidden
    values[:, ~observed] += rng.normal(size=(draws, hidden, len(REGIONS)))
    return values, observed, design, [f"P{index}" for index in range(people)]


def rows(table: pd.DataFrame, method: str, term: str = "age") -> pd.DataFrame:
    return table[(table["method"] == method) & (table["term"] == term)].set_index("region")


def test_a_fully_measured_study_is_ordinary_least_squares() -> None:
    values, observed, design, subjects = study(hidden=0)
    table = rows(analyse_regions(values, observed, design, subjects, REGIONS), MULTIPLE)
    for index, region in enumerate(REGIONS):
        fit = sm.OLS(values[0, :, index], design.to_numpy()).fit()
        row = table.loc[region]
        assert row["estimate"] == pytest.approx(fit.params[1])
        assert row["se"] == pytest.approx(fit.bse[1])
        assert row["p"] == pytest.approx(fit.pvalues[1])
        assert [row["low"], row["high"]] == pytest.approx(list(fit.conf_int()[1]))
        assert row["df"] == fit.df_resid
    assert (table["fmi"] == 0).all()


def test_each_method_uses_its_scans() -> None:
    values, observed, design, subjects = study()
    table = analyse_regions(values, observed, design, subjects, REGIONS)
    complete = sm.OLS(values[0, observed, 0], design.to_numpy()[observed]).fit()
    single = sm.OLS(values.mean(axis=0)[:, 0], design.to_numpy()).fit()
    assert rows(table, COMPLETE).loc["r0", "se"] == pytest.approx(complete.bse[1])
    assert rows(table, SINGLE).loc["r0", "se"] == pytest.approx(single.bse[1])
    multiple = rows(table, MULTIPLE)
    assert (multiple["fmi"] > 0).all()
    assert multiple.loc["r0", "gain"] == pytest.approx((complete.bse[1] / multiple.loc["r0", "se"]) ** 2 - 1)
    assert rows(table, SINGLE)["gain"].isna().all()
    assert set(table["term"]) == {"age", "sex=M"}


def test_p_values_are_adjusted_over_regions_of_a_term() -> None:
    table = rows(analyse_regions(*study(), REGIONS), MULTIPLE, "sex=M")
    assert table["p_holm"].to_numpy() == pytest.approx(holm(table["p"].to_numpy()))
    assert table["q_fdr"].to_numpy() == pytest.approx(false_discovery_control(table["p"]))


def test_regions_that_some_scans_lack_leave_those_scans_out() -> None:
    values, observed, design, subjects = study(hidden=0)
    whole = rows(analyse_regions(values, observed, design, subjects, REGIONS), MULTIPLE)
    values[:, 3, 2] = np.nan
    table = rows(analyse_regions(values, observed, design, subjects, REGIONS), MULTIPLE)
    assert table.loc["r2", "scans"] == 39
    assert table.drop(index="r2")["estimate"].to_numpy() == pytest.approx(whole.drop(index="r2")["estimate"].to_numpy())


def test_a_region_that_a_whole_group_lacks_is_left_out():
    values, observed, design, subjects = study(hidden=0)
    values[:, design["sex=M"].to_numpy() == 1, 2] = np.nan
    table = analyse_regions(values, observed, design, subjects, REGIONS)
    assert set(table["region"]) == set(REGIONS) - {"r2"}
    assert table["p"].between(0, 1).all()


def test_repeated_sessions_are_a_mixed_model() -> None:
    """Two sessions of a subject with nearly the same value are hardly more than one."""
    values, observed, design, subjects = study(hidden=0)
    again = np.random.default_rng(1).normal(0, 0.01, values[0].shape)
    doubled = np.concatenate([values, values + again], axis=1)[:, :, :2]
    table = analyse_regions(
        doubled,
        np.tile(observed, 2),
        pd.concat([design, design], ignore_index=True),
        [*subjects, *subjects],
        REGIONS[:2],
    )
    single = rows(analyse_regions(values[:, :, :2], observed, design, subjects, REGIONS[:2]), MULTIPLE)
    mixed = rows(table, MULTIPLE)
    assert mixed["se"].to_numpy() == pytest.approx(single["se"].to_numpy(), rel=0.05)
    assert mixed["df"].to_numpy() == pytest.approx(single["df"].to_numpy())


def test_a_constant_outcome_has_no_row() -> None:
    """Such as the ratio of a region to itself, which rounding makes vary; a region without values has none either."""
    values, observed, design, subjects = study()
    values[:, :, 1] = 1 + 1e-15 * values[:, :, 0]
    values[:, :, 2] = np.nan
    table = analyse_regions(values, observed, design, subjects, REGIONS)
    assert set(table["region"]) == set(REGIONS) - {"r1", "r2"}


def test_the_jackknife_scales_the_variances_of_a_term() -> None:
    """By its mean ratio over outcomes; the degrees of freedom are those of Rubin's rules."""
    values, observed, design, subjects = study()
    left_out = np.zeros((40, *values.shape[1:]))
    changes = Replicates(np.arange(40), np.ones(40), left_out, np.zeros((2, *values.shape[1:])))
    table = analyse_regions(values, observed, design, subjects, REGIONS, changes)
    alone = analyse_regions(values[:, :, :1], observed, design, subjects, REGIONS[:1], changes.regions(np.array([0])))
    for term in ("age", "sex=M"):
        multiple, rubin = (rows(table, method, term) for method in (MULTIPLE, RUBIN))
        ratio = np.square(multiple["se"] / rubin["se"])
        assert ratio.to_numpy() == pytest.approx(np.full(len(REGIONS), ratio.iloc[0]))
        assert (multiple["df"] == rubin["df"]).all()
        assert (multiple["estimate"] == rubin["estimate"]).all()
        one = np.square(rows(alone, MULTIPLE, term)["se"] / rows(alone, RUBIN, term)["se"])
        assert one.iloc[0] != pytest.approx(ratio.iloc[0])


def test_a_term_without_a_variance_leaves_the_others_their_jackknife() -> None:
    """Time varies within one subject alone, so nothing tells how much its scans vary."""
    values, observed, design, subjects = study()
    subjects[39] = subjects[38]
    design["time"] = (np.arange(40) == 39).astype(float)
    changes = Replicates(
        np.arange(40), np.ones(40), np.zeros((40, *values.shape[1:])), np.zeros((2, *values.shape[1:]))
    )
    table = analyse_regions(values, observed, design, subjects, REGIONS, changes)
    assert len(rows(table, RUBIN)) == len(rows(table, MULTIPLE)) == len(REGIONS)
    assert rows(table, MULTIPLE, "time").empty


def test_effects_within_subjects_have_the_ratio_of_their_outcome() -> None:
    """How far Rubin's rules are off depends on how alike a subject's errors are, which differs between regions.

    The ratio of an effect between subjects is that of all outcomes: few subjects may carry it.
    """
    values, observed, design, subjects = study(people=160, hidden=80)
    subjects[1::2] = subjects[::2]
    design.loc[1::2, "sex=M"] = design["sex=M"].to_numpy()[::2]
    left_out = 0.01 * np.random.default_rng(1).normal(size=(80, *values.shape[1:]))
    left_out[:, :, -1] *= 100
    changes = Replicates(np.repeat(np.arange(80), 2), np.ones(80), left_out, np.zeros((2, *values.shape[1:])))
    together = analyse_regions(values, observed, design, subjects, REGIONS, changes)
    for index, region in enumerate(REGIONS):
        part = changes.regions(np.array([index]))
        alone = analyse_regions(values[:, :, [index]], observed, design, subjects, [region], part)
        se = {
            term: (rows(together, MULTIPLE, term).loc[region, "se"], rows(alone, MULTIPLE, term).loc[region, "se"])
            for term in ("age", "sex=M")
        }
        assert se["age"][0] == pytest.approx(se["age"][1])
        assert se["sex=M"][0] != pytest.approx(se["sex=M"][1], rel=0.01)


def test_derived_outcomes_do_not_change_the_intervals_of_others() -> None:
    """An asymmetry or a ratio is no linear outcome, and may be far from what all others have in common."""
    values, observed, design, subjects = study()
    rng = np.random.default_rng(1)
    left_out = 0.01 * rng.normal(size=(40, *values.shape[1:]))
    left_out[:, :, -1] *= 100
    changes = Replicates(np.arange(40), np.ones(40), left_out, np.zeros((2, *values.shape[1:])))
    table = analyse_regions(values, observed, design, subjects, REGIONS, changes, derived=1)
    others = changes.regions(np.arange(len(REGIONS) - 1))
    without = analyse_regions(values[:, :, :-1], observed, design, subjects, REGIONS[:-1], others)
    for term in ("age", "sex=M"):
        shared = rows(table, MULTIPLE, term)["se"].iloc[:-1]
        assert shared.to_numpy() == pytest.approx(rows(without, MULTIPLE, term)["se"].to_numpy())
        mixed = analyse_regions(values, observed, design, subjects, REGIONS, changes)
        assert rows(mixed, MULTIPLE, term)["se"].iloc[0] > 2 * shared.iloc[0]


def test_a_mixed_model_without_a_result_leaves_out_its_outcome(monkeypatch) -> None:
    """The comparison with complete cases may lack a region without ending the analysis."""
    values, observed, design, subjects = study()
    subjects[1] = subjects[0]
    real = group_models.fit_random_intercepts

    def failing(outcomes, *arguments):
        fits = real(outcomes, *arguments)
        if len(outcomes) == observed.sum():
            fits.variances[2] = np.nan
        return fits

    observed[:2], observed[2:4] = True, False
    monkeypatch.setattr(group_models, "fit_random_intercepts", failing)
    table = analyse_regions(values[:3], observed, design, subjects, REGIONS)
    assert set(rows(table, COMPLETE).index) == set(REGIONS) - {"r2"}
    assert set(rows(table, MULTIPLE).index) == set(REGIONS)
    assert table["p_holm"].notna().all()
