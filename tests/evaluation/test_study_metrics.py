"""Scores over people: correlation, distance from uniformity, and their bootstrap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dualflow.evaluation import study_metrics
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.statistics import bootstrap_interval, differences, summarise
from dualflow.evaluation.study_metrics import (
    STUDY_METRICS,
    TRUE_LAW,
    TRUE_SPREAD,
    distance_from_uniform,
    measure,
    resample,
    study_scores,
    weighted_correlation,
    with_true_spread,
)

SUBJECTS = [f"sub-{number:02d}" for number in range(40)]


def table(model: str = "flow", noise: float = 0.01, **columns) -> pd.DataFrame:
    """One scan per subject; the error follows the spread up to `noise`."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.02, 0.1, len(SUBJECTS))
    values = {"person_spread": spread, "person_error": spread + noise * rng.normal(size=len(SUBJECTS))}
    return pd.DataFrame({"model": model, "seed": 0, "scan": SUBJECTS, "mae": 0.1, **values, **columns})


def test_weights_count_rows():
    """A weight of 2 is a repeated row, for both statistics."""
    rng = np.random.default_rng(1)
    values, counts = rng.random((9, 2)), np.array([1, 2, 0, 1, 3, 1, 1, 0, 2])
    repeated = np.repeat(values, counts, axis=0)
    expected = np.corrcoef(repeated.T)[0, 1]
    assert weighted_correlation(values, counts[None].astype(float))[0] == pytest.approx(expected)
    one = np.ones((1, len(repeated)))
    assert distance_from_uniform(values[:, :1], counts[None])[0] == pytest.approx(
        distance_from_uniform(repeated[:, :1], one)[0]
    )


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.1, 0.9], [0.03, 0.4, 0.4, 0.95, 0.2]])
def test_distance_agrees_with_a_sum_over_a_grid(values):
    """The closed form is the integral of the absolute deviation of the distribution function."""
    grid = (np.arange(200_000) + 0.5) / 200_000
    expected = np.abs((np.array(values)[:, None] <= grid).mean(0) - grid).mean()
    distance = distance_from_uniform(np.array(values)[:, None], np.ones((1, len(values))))[0]
    assert distance == pytest.approx(expected, abs=1e-4)


def test_distance_of_uniform_values_has_the_documented_size():
    """Independent uniform values are at 0.31 / sqrt(N) on average; narrow laws are further away."""
    rng = np.random.default_rng(2)
    even = np.mean([distance_from_uniform(rng.random((40, 1)), np.ones((1, 40)))[0] for _ in range(400)])
    assert even == pytest.approx(0.31 / np.sqrt(40), rel=0.05)
    extreme = np.where(rng.random((40, 1)) < 0.5, 0.02, 0.98)
    assert distance_from_uniform(extreme, np.ones((1, 40)))[0] > 4 * even


def test_visits_share_the_weight_of_their_subject():
    """PIT values are pooled, one subject one weight; spreads are averaged by subject."""
    counts = pd.DataFrame(np.ones((3, 2), int), columns=["1", "2"])
    scans = ["sub-1_ses-a", "sub-1_ses-b", "sub-2"]
    frame = pd.DataFrame({"scan": scans, "contrast_pit": [0.1, 0.9, 0.5]})
    result = resample(frame, STUDY_METRICS["contrast_pit_distance"], counts)
    expected = distance_from_uniform(frame[["contrast_pit"]].to_numpy(), np.array([[0.25, 0.25, 0.5]]))[0]
    assert result.value == pytest.approx(expected)
    assert (result.subjects, len(result.draws)) == (2, 3)

    people = pd.concat([table(), table(person_error=7.0).assign(scan=[f"{key}_ses-b" for key in SUBJECTS])])
    people = people.assign(scan=[key if "ses" in key else f"{key}_ses-a" for key in people["scan"]])
    labels = pd.DataFrame(np.ones((3, 40), int), columns=[key.removeprefix("sub-") for key in SUBJECTS])
    both = resample(people, STUDY_METRICS["person_spread_r"], labels)
    single = table()
    assert both.value == pytest.approx(np.corrcoef(single["person_spread"], single["person_error"])[0, 1])


def test_resamples_do_not_depend_on_how_many_are_in_memory(monkeypatch):
    """One without any of these people has no value."""
    labels = [key.removeprefix("sub-") for key in SUBJECTS]
    counts = pd.DataFrame(np.random.default_rng(2).integers(0, 3, (9, 40)), columns=labels)
    counts.iloc[4] = 0
    draws = [resample(table(), STUDY_METRICS["person_spread_r"], counts).draws]
    monkeypatch.setattr(study_metrics, "RESAMPLES_AT_ONCE", 2)
    draws.append(resample(table(), STUDY_METRICS["person_spread_r"], counts).draws)
    np.testing.assert_allclose(*draws, rtol=1e-12)
    assert np.flatnonzero(np.isnan(draws[0])).tolist() == [4]


def test_summaries_have_study_metrics_with_intervals():
    """The interval surrounds the correlation; a constant spread has none, and neither has a model without columns."""
    other = pd.DataFrame({"model": "plain", "seed": 0, "scan": SUBJECTS, "mae": 0.2})
    summary = summarise(pd.concat([table(), table("flat", person_spread=0.05), other]))
    rows = summary[summary["metric"] == "person_spread_r"].set_index("model")
    assert list(rows.index) == ["flow"]
    assert rows.loc["flow", "low"] < rows.loc["flow", "mean"] < rows.loc["flow", "high"]
    assert rows.loc["flow", "subjects"] == 40
    assert set(summary.loc[summary["metric"] == "mae", "model"]) == {"flow", "flat", "plain"}


def test_scores_of_one_model_are_those_of_its_summary():
    """Those that do not apply are left out, such as a correlation with the unknown true spread."""
    frame = table(contrast_pit=np.random.default_rng(3).random(40))
    summary = summarise(frame).set_index("metric")["mean"]
    scores = study_scores(frame)
    assert set(scores) == {"contrast_pit_distance", "person_spread_r"}
    assert scores == pytest.approx(summary[list(scores)].to_dict())
    assert study_scores(frame[["scan", "mae"]]) == {}


def test_the_interval_of_a_distance_surrounds_it():
    """Resamples repeat people, which lengthens every distance; the interval is corrected for it."""
    pit = np.random.default_rng(3).permutation((np.arange(40) + 0.5) / 40)
    row = summarise(table(contrast_pit=pit)).set_index("metric").loc["contrast_pit_distance"]
    assert row["mean"] < 0.01
    assert row["low"] < row["mean"] < row["high"]


def test_intervals_of_scores_over_people_are_those_of_their_number():
    """Expanded percentiles of the same resamples."""
    frame, rng = table(noise=0.03), np.random.default_rng(0)
    counts = pd.DataFrame(rng.multinomial(40, np.full(40, 1 / 40), size=2000), columns=[key[4:] for key in SUBJECTS])
    draws = resample(frame, STUDY_METRICS["person_spread_r"], counts).draws
    row = summarise(frame).set_index("metric").loc["person_spread_r"]
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(draws, 40))
    assert row["low"] < np.percentile(draws, 2.5) < np.percentile(draws, 97.5) < row["high"]


@pytest.mark.parametrize("metric", STUDY_METRICS)
def test_no_draw_leaves_the_range_of_its_metric(metric):
    """Resamples of few people have a bias, whose correction moved the ends of intervals over 1 and below 0."""
    rng, people = np.random.default_rng(5), 7
    low, high = STUDY_METRICS[metric].limits
    counts = pd.DataFrame(rng.multinomial(people, np.full(people, 1 / people), size=500), columns=list("1234567"))
    for _ in range(20):
        spread = rng.normal(size=people)
        columns = [(np.arange(people) + rng.random(people)) / people, spread, spread + rng.normal(size=people)]
        chosen = columns[:1] if metric == "contrast_pit_distance" else columns[1:]
        frame = pd.DataFrame(dict(zip(STUDY_METRICS[metric].columns, chosen, strict=True)))
        draws = resample(frame.assign(scan=[f"sub-{label}" for label in counts]), STUDY_METRICS[metric], counts).draws
        assert low <= np.nanmin(draws) <= np.nanmax(draws) <= high


def test_models_are_paired_in_study_metrics():
    """A spread that follows the errors less has a clear loss; without a test there is no verdict."""
    frame = pd.concat([table(), table("loose", noise=0.2), table("same")])
    result = differences(frame, "flow").set_index(["model", "metric"])
    loose, same = (result.loc[(model, "person_spread_r")] for model in ("loose", "same"))
    assert loose["gain_high"] < 0
    assert loose["verdict"] == "undecided"
    assert loose["gain"] == pytest.approx(loose["difference"])
    assert np.isnan(loose["p"])
    assert (same["difference"], same["verdict"]) == (0.0, "undecided")


def test_spreads_are_compared_with_those_of_the_true_law():
    """The true law correlates with itself at 1; a table without it has no such column."""
    truth = table(TRUE_LAW)
    flow = table(person_spread=2 * truth["person_spread"] + 0.1)
    frame = with_true_spread(pd.concat([flow, truth]))
    assert frame.loc[frame["model"] == "flow", TRUE_SPREAD].tolist() == truth["person_spread"].tolist()
    summary = summarise(frame).set_index(["metric", "model"])["mean"]
    assert summary["person_spread_true_r"].to_dict() == pytest.approx({"flow": 1.0, TRUE_LAW: 1.0})
    assert TRUE_SPREAD not in with_true_spread(flow)
    assert "person_spread_true_r" not in set(summarise(flow)["metric"])


def test_the_documented_range_of_every_score_is_two_numbers():
    """Resampled values are cut at them."""
    limits = {name: measure(name).limits for name in [*METRICS, *STUDY_METRICS]}
    assert all(low < high for low, high in limits.values())
    assert (limits["ad_roi_r"], limits["contrast_pit_distance"], limits["mae"]) == ((-1, 1), (0, 0.5), (0, np.inf))


def test_measures_are_found_by_name():
    """Metrics of scans and of studies have one lookup, for headings and digits."""
    assert measure("mae").label == "MAE"
    assert measure("person_spread_r").better == "higher"


def test_more_seeds_are_no_better_score():
    """The score of several seeds is the mean of theirs; the mean of their predictions would correlate better."""
    rng, truth = np.random.default_rng(6), table()["person_error"].to_numpy()
    spreads = truth + truth.std() * rng.normal(size=(3, len(SUBJECTS)))
    pits = rng.random((3, len(SUBJECTS)))
    seeds = [
        table(person_error=truth, person_spread=spread, contrast_pit=pit).assign(seed=seed)
        for seed, (spread, pit) in enumerate(zip(spreads, pits, strict=True))
    ]
    each, together = pd.DataFrame([study_scores(one) for one in seeds]), study_scores(pd.concat(seeds))
    assert together == pytest.approx(each.mean().to_dict())
    assert together["person_spread_r"] < np.corrcoef(spreads.mean(axis=0), truth)[0, 1] - 0.1
    row = summarise(pd.concat(seeds)).set_index("metric").loc["person_spread_r"]
    assert row["mean"] == pytest.approx(together["person_spread_r"])
    assert row["low"] < row["mean"] < row["high"]


def test_a_seed_without_a_value_does_not_count():
    """A spread that is the same for everyone has no correlation."""
    flat = table(person_spread=0.05).assign(seed=1)
    assert study_scores(pd.concat([table(), flat])) == study_scores(table())


def test_a_correlation_is_one_within_trainings():
    """Levels of the folds' models neither make a correlation nor hide one."""
    fold = np.arange(len(SUBJECTS)) % 2
    counts = pd.DataFrame(np.ones((3, len(SUBJECTS)), int), columns=[name.removeprefix("sub-") for name in SUBJECTS])
    metric, one = STUDY_METRICS["person_spread_r"], table()
    within = resample(one, metric, counts).value
    shifted = one.assign(fold=fold, person_spread=one["person_spread"] + 5 * fold)
    assert resample(shifted, metric, counts).value == pytest.approx(within, abs=0.01)
    assert abs(resample(shifted.drop(columns="fold"), metric, counts).value) < 0.3
    constant = one.assign(fold=fold, person_spread=np.where(fold, 0.0593, 0.0537))
    assert resample(constant, metric, counts) is None
