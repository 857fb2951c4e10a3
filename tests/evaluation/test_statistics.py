"""Summaries and paired differences of models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, norm, wilcoxon
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from dualflow.errors import DataError
from dualflow.evaluation.statistics import (
    MIN_CORRELATED,
    MIN_SUBJECTS,
    bootstrap_interval,
    differences,
    holm,
    is_within_slack,
    subject_means,
    summarise,
)


def table(subjects: int = 20, shift: float = -0.003, seed: int = 0) -> pd.DataFrame:
    """Two models on the same subjects, whose difficulty varies more than the models differ."""
    rng = np.random.default_rng(seed)
    difficulty = 0.05 + 0.02 * rng.random(subjects)
    rows = []
    for model, extra, seeds in (("flow", shift, (0, 1)), ("unet", 0.0, (0,))):
        for train_seed in seeds:
            noise = 0.002 * rng.normal(size=subjects)
            for subject in range(subjects):
                error = difficulty[subject] + extra + noise[subject]
                rows.append((model, train_seed, f"sub-{subject:02d}", error, 1 - error))
    return pd.DataFrame(rows, columns=["model", "seed", "scan", "mae", "ssim"])


def test_seeds_and_visits_are_averaged_before_subjects():
    """A subject with two visits and a model with two seeds have the weight of any other."""
    rows = [("m", 0, "sub-1_ses-a", 1.0), ("m", 1, "sub-1_ses-a", 3.0), ("m", 0, "sub-1_ses-b", 6.0)]
    frame = pd.DataFrame([*rows, ("m", 0, "sub-2", 10.0)], columns=["model", "seed", "scan", "mae"])
    assert subject_means(frame)["mae"].tolist() == [4.0, 10.0]
    summary = summarise(frame, bootstrap=200).iloc[0]
    assert (summary["mean"], summary["subjects"], summary["seeds"]) == (7.0, 2, 2)


def test_bootstrap_interval_covers_the_true_mean():
    """About 95 % of the intervals contain the true mean."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        frame = pd.DataFrame({"model": "m", "seed": 0, "scan": [f"sub-{i}" for i in range(30)]})
        row = summarise(frame.assign(mae=rng.normal(1.0, 0.3, 30)), bootstrap=500).iloc[0]
        hits += row["low"] <= 1.0 <= row["high"]
    assert 178 <= hits <= 198


def test_intervals_of_six_people_cover_the_true_mean():
    """About 94 % of the intervals of 600 studies contain it, and 87 % of plain percentile intervals."""
    frame = pd.DataFrame([(f"m{study}", 0, f"sub-{i}") for study in range(600) for i in range(MIN_SUBJECTS)])
    frame.columns = ["model", "seed", "scan"]
    frame["mae"] = np.random.default_rng(2).normal(1.0, 0.3, len(frame))
    low, high = summarise(frame)[["low", "high"]].to_numpy().T
    assert 0.91 <= ((low <= 1.0) & (high >= 1.0)).mean() <= 0.97


def test_the_percentiles_of_an_interval_depend_on_the_people_of_its_column():
    """Those of Student's t, wider by sqrt(n / (n - 1)); NaN draws are left out, and one person has no interval."""
    draws = np.tile(np.linspace(0.0, 1.0, 10001)[:, None], (1, 5))
    draws[:, 3], draws[5001:, 4] = np.nan, np.nan
    people = np.array([6, 40, 1, 6, 6])
    low, high = bootstrap_interval(draws, people)
    tails = [norm.cdf(-np.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1)) for n in (6, 40)]
    np.testing.assert_allclose(low, [*tails, np.nan, np.nan, tails[0] / 2], atol=1e-6)
    np.testing.assert_allclose(high, [1 - tails[0], 1 - tails[1], np.nan, np.nan, (1 - tails[0]) / 2], atol=1e-6)
    assert bootstrap_interval(draws[:, 0], 6) == pytest.approx((low[0], high[0]))


def test_paired_differences_are_more_sensitive_than_separate_intervals():
    """Although the intervals of the means overlap, that of the paired difference excludes zero."""
    frame = table()
    summary = summarise(frame).set_index(["model", "metric"])
    assert summary.loc[("flow", "mae"), "high"] > summary.loc[("unet", "mae"), "low"]
    result = differences(frame, "unet").set_index("metric")
    assert result.loc["mae", "high"] < 0
    assert result.loc["mae", "verdict"] == result.loc["ssim", "verdict"] == "better"
    assert result.loc["mae", "gain"] == pytest.approx(-result.loc["mae", "difference"])
    assert result.loc["ssim", "gain"] == pytest.approx(result.loc["ssim", "difference"])
    means = subject_means(frame).pivot(index="subject", columns="model", values="mae")
    assert result.loc["mae", "p"] == pytest.approx(wilcoxon(means["flow"], means["unet"]).pvalue)


def test_worse_and_equal_models_have_their_verdicts():
    """A worse model is called worse, and noise is undecided."""
    verdicts = differences(table(shift=0.003), "unet").set_index("metric")["verdict"]
    assert set(verdicts) == {"worse"}
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"model": ["a"] * 15 + ["b"] * 15, "seed": 0, "scan": [f"sub-{i}" for i in range(15)] * 2})
    assert differences(frame.assign(mae=rng.normal(size=30)), "b")["verdict"].tolist() == ["undecided"]


def test_the_least_number_of_people_can_show_a_difference():
    """Wilcoxon's smallest p-value is below 0.05 with MIN_SUBJECTS people, and not with one fewer."""
    for people in (MIN_SUBJECTS - 1, MIN_SUBJECTS):
        assert (wilcoxon(np.arange(1.0, people + 1)).pvalue < 0.05) == (people == MIN_SUBJECTS)


@pytest.mark.parametrize("people", [2, MIN_SUBJECTS - 1, MIN_SUBJECTS, MIN_CORRELATED - 1, MIN_CORRELATED])
def test_few_people_have_neither_interval_nor_test(people):
    """Below MIN_SUBJECTS a clear difference has no verdict, and its ends and p-value are NaN.

    Scores over people have an interval from MIN_CORRELATED on.
    """
    scans = [f"sub-{i}" for i in range(people)]
    frame = pd.DataFrame({"model": ["a"] * people + ["b"] * people, "seed": 0, "scan": scans * 2})
    frame["mae"] = np.r_[np.linspace(0.1, 0.2, people), np.linspace(0.5, 0.9, people)]
    frame["contrast_pit"] = np.linspace(0, 1, 2 * people)
    enough, result = people >= MIN_SUBJECTS, differences(frame, "b").set_index("metric")
    assert result.loc["mae", "verdict"] == ("better" if enough else "few")
    assert result.loc["contrast_pit_distance", "verdict"] == ("undecided" if people >= MIN_CORRELATED else "few")
    assert np.isfinite(result.loc["mae", ["low", "high", "gain_low", "p", "p_holm"]].astype(float)).all() == enough
    for metric, some in summarise(frame).groupby("metric"):
        enough = people >= (MIN_SUBJECTS if metric == "mae" else MIN_CORRELATED)
        assert np.isfinite(some[["low", "high"]].to_numpy()).all() == enough


@pytest.mark.parametrize(("people", "models"), [(6, 1), (6, 2), (7, 3), (7, 4), (8, 6), (8, 7), (9, 12), (9, 13)])
def test_too_few_people_for_so_many_models_decide_nothing(people, models):
    """Differences of the same sign for everyone are clear, unless Holm's adjustment makes that impossible."""
    rng, names = np.random.default_rng(0), ["reference", *(f"m{i}" for i in range(models))]
    frame = pd.DataFrame([(name, 0, f"sub-{i}") for name in names for i in range(people)])
    frame.columns = ["model", "seed", "scan"]
    frame["mae"] = 0.1 + (frame["model"] != "reference") + 0.01 * rng.random(len(frame))
    # A model with the same predictions is not tested, and does not count.
    equal = frame[frame["model"] == "reference"].assign(model="equal")
    result = differences(pd.concat([frame, equal]), "reference").set_index("model")
    possible = models * wilcoxon(np.arange(1.0, people + 1)).pvalue < 0.05
    assert set(result.drop("equal")["verdict"]) == {"worse" if possible else "few"}
    assert np.isfinite(result.drop("equal")[["low", "p_holm"]].to_numpy()).all()
    assert result.loc["equal", "verdict"] == "equal"


def test_a_model_scored_on_more_people_leaves_the_others_their_chance():
    """Its p-value can be the smaller one, so that the other is not multiplied by 2."""
    people = {"a": 6, "b": 12, "reference": 12}
    frame = pd.DataFrame([(name, 0, f"sub-{i:02d}", i) for name, count in people.items() for i in range(count)])
    frame.columns = ["model", "seed", "scan", "mae"]
    frame["mae"] = 0.1 + 0.01 * frame["mae"] + frame["model"].map({"a": 0.2, "b": 0.1, "reference": 0.0})
    assert differences(frame, "reference").set_index("model")["verdict"].to_dict() == {"a": "worse", "b": "worse"}


def test_equal_predictions_are_not_tested():
    """Values that differ by rounding are equal by construction, and take no part in the correction for many tests."""
    rng, scans = np.random.default_rng(5), [f"sub-{i}" for i in range(8)]
    values = rng.uniform(0.1, 0.2, 8)
    models = {"flow": values, "mean": values * (1 + 1e-7), "unet": values + 0.01 + 0.001 * rng.normal(size=8)}
    frame = pd.concat([pd.DataFrame({"model": name, "seed": 0, "scan": scans, "mae": v}) for name, v in models.items()])
    result = differences(frame, "flow").set_index("model")
    assert result.loc["mean", "verdict"] == "equal"
    assert np.isnan(result.loc["mean", ["p", "p_holm"]].astype(float)).all()
    assert result.loc["unet", "p_holm"] == result.loc["unet", "p"] == pytest.approx(2 / 2**8)


@pytest.mark.parametrize(
    ("slack", "verdict"),
    [((0.0, 0.03), "undecided"), ((0.0, 0.0075), "undecided"), ((0.0, 0.004), "better"), ((0.03, 0.0), "better"),
     (None, "better"), ((0.0, np.inf), "undecided")],
)  # fmt: skip
def test_bits_within_the_slack_of_the_larger_bound_decide_nothing(slack, verdict):
    """However sure the difference is: the larger bound may be too high by as much; the smaller one does not matter.

    The second slack is below the difference, but not below the near end of its interval. An infinite one explains all.
    """
    bits = np.random.default_rng(0).normal(-2.4, 0.3, 20)
    frame = pd.DataFrame({"model": ["a"] * 20 + ["b"] * 20, "seed": 0, "scan": [f"sub-{i}" for i in range(20)] * 2})
    frame = frame.assign(bits_in_mask=np.r_[bits, bits + 0.01 + 0.001 * bits])
    frame = frame if slack is None else frame.assign(bits_slack=np.repeat(slack, 20))
    row = differences(frame, "b").iloc[0]
    assert row["p_holm"] < 0.001
    assert row["verdict"] == verdict
    assert is_within_slack(row) == (verdict == "undecided")
    assert not is_within_slack({**row, "verdict": "undecided", "p_holm": 0.3})


def test_an_infinite_score_is_no_missing_one():
    """A model that gives people no density has an infinite mean, and is never the better one for it."""
    scores = table().drop(columns="ssim").rename(columns={"mae": "bits_in_mask"})
    first = scores.index[scores["model"] == scores["model"].iloc[0]]
    scores.loc[first[:3], "bits_in_mask"] = np.inf
    model, other = dict.fromkeys(scores["model"])
    entry = summarise(scores).set_index("model").loc[model]
    assert (entry["mean"], entry["subjects"]) == (np.inf, 20)
    assert entry[["low", "high", "sd"]].isna().all()
    row = differences(scores, other).iloc[0]
    assert (row["difference"], row["verdict"]) == (np.inf, "undecided")
    assert row[["low", "high", "gain_low", "gain_high", "p", "p_holm"]].isna().all()


@pytest.mark.parametrize("metric", ["voxel_sharpness", "region_pit_distance"])
def test_a_spread_that_is_sharp_or_wide_is_not_called_better(metric):
    """A spread that is too narrow is sharp, and one that is too wide may have the smaller PIT distance."""
    scores = table().drop(columns="ssim").rename(columns={"mae": metric})
    row = differences(scores, scores["model"].iloc[0]).iloc[0]
    assert row["verdict"] == "unranked"
    assert np.isnan(row["p_holm"])


def test_a_spread_is_not_called_better_because_its_mean_is_worse():
    """Large errors of a bad mean are easy to foresee; of models of about the same error the spread decides."""
    scores = table(shift=0.0).drop(columns="ssim")
    better_spread = 0.2 + 0.3 * (scores["model"] == "unet") + scores["mae"]
    for error, verdict in ((0.0, "better"), (0.1, "unranked")):
        worse_mean = scores["mae"] + error * (scores["model"] == "unet")
        frame = scores.assign(mae=worse_mean, spread_error_r=better_spread)
        rows = differences(frame, "flow").set_index("metric")
        assert rows.loc["spread_error_r", "verdict"] == verdict
        assert np.isnan(rows.loc["spread_error_r", "p_holm"]) == (verdict == "unranked")
        assert rows.loc["mae", "verdict"] == ("worse" if error else "undecided")


def test_coverage_is_judged_by_its_distance_from_the_nominal_level():
    """Coverage above the level is no better than below it; the test is that of the paired difference."""
    scans = [f"sub-{i}" for i in range(12)]
    near, far = np.full(12, 0.82), 0.96 + 0.001 * np.arange(12)
    frame = pd.DataFrame({"model": ["a"] * 12 + ["b"] * 12, "seed": 0, "scan": scans * 2})
    row = differences(frame.assign(region_coverage_80=np.r_[near, far]), "b").iloc[0]
    assert row["verdict"] == "better"
    assert row["gain"] == pytest.approx(0.1455)
    assert row["p"] == pytest.approx(wilcoxon(near - far).pvalue)


def test_two_sides_of_an_ideal_value_are_equally_far():
    """The difference is clear, and neither model is better."""
    sides = np.r_[np.full(12, 0.7), np.full(12, 0.9)] + 0.005 * np.random.default_rng(0).normal(size=24)
    frame = pd.DataFrame({"model": ["a"] * 12 + ["b"] * 12, "seed": 0, "scan": [f"sub-{i}" for i in range(12)] * 2})
    row = differences(frame.assign(region_coverage_80=sides), "b").iloc[0]
    assert row["p_holm"] < 0.001
    assert row["verdict"] == "undecided"


def test_equally_biased_models_seldom_differ():
    """With the interval alone, three in ten comparisons of six equal models had a false verdict."""
    rng, false = np.random.default_rng(2), 0
    keys = [(model, 0, f"sub-{i:02d}") for model in "abcdefg" for i in range(8)]
    for study in range(30):
        frame = pd.DataFrame(keys, columns=["model", "seed", "scan"])
        frame["region_bias"] = 5 + rng.normal(0, 2, len(keys))
        false += (differences(frame, "a", bootstrap=300, seed=study)["verdict"] != "undecided").any()
    assert false <= 4


def test_metrics_that_do_not_apply_and_missing_subjects():
    """A metric without values is omitted; pairs are the subjects on which both models were scored."""
    frame = table().assign(voxel_coverage_50=np.nan)
    frame.loc[frame["model"] == "flow", "voxel_coverage_50"] = 0.5
    frame = frame[~((frame["model"] == "unet") & (frame["scan"] == "sub-03"))]
    summary = summarise(frame).set_index(["model", "metric"])
    assert ("unet", "voxel_coverage_50") not in summary.index
    assert summary.loc[("flow", "mae"), "subjects"] == 20
    result = differences(frame, "unet").set_index("metric")
    assert result.loc["mae", "subjects"] == 19
    assert "voxel_coverage_50" not in result.index


def test_equal_seeds_give_equal_tables():
    """The bootstrap is seeded."""
    pd.testing.assert_frame_equal(summarise(table(), seed=3), summarise(table(), seed=3))
    pd.testing.assert_frame_equal(differences(table(), "unet", seed=3), differences(table(), "unet", seed=3))


def test_holm_by_hand():
    """Sorted p-values times 3, 2, 1, non-decreasing, at most 1; NaN entries are not tests."""
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, np.nan, 0.03])), [0.06, 0.03, np.nan, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])
    p = np.array([0.001, 0.02, 0.03, 0.4])
    assert (holm(p) >= false_discovery_control(p)).all()
    assert np.isnan(holm(np.array([np.nan]))).all()


@pytest.mark.parametrize("p", [[0.02], [0.01, 0.01, 0.0, 0.2, 0.01], [0.7, 1.0, 0.001, 0.3, 0.02]])
def test_holm_is_that_of_statsmodels(p):
    """Ties and certainties included."""
    np.testing.assert_allclose(holm(np.array(p)), multipletests(p, method="holm")[1])


def test_unusable_tables_are_refused():
    """The error names a missing column or an unknown reference."""
    with pytest.raises(DataError, match="scan"):
        summarise(pd.DataFrame({"model": ["m"], "seed": [0], "mae": [1.0]}))
    with pytest.raises(DataError, match="choose from: flow, unet"):
        differences(table(), "u-net")
