"""The comparison table: cost, scores and stress totals of the flows that are trained as planned."""

import numpy as np
import pandas as pd
import pytest
from comparison import TIMES, FakeTimer, save_card, score_ceilings, study_values, train_and_score

from dualflow.config import parse_config
from dualflow.evaluation.comparison_table import gather_comparison, with_bits_of_all
from dualflow.report.comparison_text import comparison_parts
from dualflow.revisions import REVISIONS
from dualflow.training.budget import make_plan


@pytest.fixture
def config(tmp_path):
    return parse_config(study_values(tmp_path))


def test_the_table_gathers_cost_and_scores(config):
    """Seeds are averaged, memory is their maximum, and sessions of a subject are averaged first."""
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    nll = {"nll_true": [1.0, 1.0, 1.0, 3.0], "nll_wrong": [2.0, 2.0, 2.0, 2.0], "bits_in_mask": [1.0, 3.0, 5.0, 7.0]}
    train_and_score(config, "dualflow", 0, 10, mae=0.1, memory="900.5", **nll)
    train_and_score(config, "dualflow", 1, 10, mae=0.3, memory="800.0", **nll)
    (row,) = gather_comparison([config], plan).table.to_dict("records")
    assert (row["model"], row["seeds"], row["people"], row["steps"], row["parameters"]) == (
        "dualflow",
        2,
        3,
        10,
        1000,
    )
    assert row["mae"] == pytest.approx(0.2)
    assert row["train_seconds"] == pytest.approx(6.5)
    assert row["step_seconds"] == TIMES["dualflow"]
    assert row["mean_seconds"] == pytest.approx(2.0)
    assert row["total_seconds"] == pytest.approx(8.5)
    assert row["memory_mib"] == pytest.approx(900.5)
    assert row["true_beats_wrong"] == pytest.approx(2 / 3)
    assert row["true_beats_wrong_low"] < 2 / 3 < row["true_beats_wrong_high"]
    assert row["bits_in_mask"] == pytest.approx((2 + 5 + 7) / 3)
    assert np.isnan(row["bits_in_mask_low"])  # three people are too few for an interval


def test_a_model_without_all_people_has_no_row(tmp_path):
    """Its training failed in the harder of two folds, so that its mean would be the best."""
    studies = [parse_config(study_values(tmp_path / str(fold))) for fold in range(2)]
    plan = make_plan(studies[0], ["dualflow", "dual_glow"], 1, FakeTimer())
    for study, fold in zip(studies, range(2), strict=True):
        scans = [f"sub-{fold}{index}" for index in range(6)]
        train_and_score(study, "dualflow", 0, 10, scans=scans, mae=0.05 + 0.15 * fold)
        if fold == 0:
            train_and_score(study, "dual_glow", 0, 2, scans=scans, mae=0.06)
    result = gather_comparison(studies, plan)
    assert result.table["model"].tolist() == ["dualflow"]
    assert set(result.scores["model"]) == {"dualflow"}


def test_a_person_without_a_finite_pair_is_not_among_the_wins(config):
    """An infinite NLL under another subject's source is no win."""
    nll = {"nll_true": [1.0, 1.0, 1.0, 3.0], "nll_wrong": [2.0, 2.0, np.inf, 2.0]}
    train_and_score(config, "dualflow", 0, 10, **nll)
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    (row,) = gather_comparison([config], plan).table.to_dict("records")
    assert row["true_beats_wrong"] == pytest.approx(1 / 2)


def test_the_true_law_of_a_simulation_is_a_row_without_differences(config):
    """It has scores, and no training, steps or commit; its spread is what that of a model is correlated with."""
    scans, spread = [f"sub-{index}" for index in range(8)], np.linspace(1, 2, 8)
    for name, steps, crps in (("dualflow", 10, 0.05), ("dual_glow", 2, 0.06)):
        train_and_score(config, name, 0, steps, scans=scans, voxel_crps=crps, person_spread=spread)
    plan = make_plan(config, ["dualflow", "dual_glow"], 1, FakeTimer())
    assert list(gather_comparison([config], plan).table["model"]) == ["dualflow", "dual_glow"]
    score_ceilings(config, scans=scans, voxel_crps=0.04, person_spread=spread**2)
    result = gather_comparison([config], plan)
    assert list(result.table["model"]) == ["true_law", "dualflow", "dual_glow"]
    law, flow, _ = result.table.to_dict("records")
    assert law["people"] == flow["people"] == 8
    assert np.isnan([law["steps"], law["seeds"], law["trainings"]]).all()
    assert flow["person_spread_true_r"] == pytest.approx(np.corrcoef(spread, spread**2)[0, 1])
    assert set(result.differences["model"]) == {"dual_glow"}
    head = comparison_parts(result, config, plan)[0]
    assert "trained at commit abc)" in head
    assert "true_law: draws from the law of the simulation" in head


@pytest.mark.parametrize(
    "change",
    [{"cohort": {"law": "hard"}}, {"evaluate": {"samples": 7}}, {"evaluate": {"bootstrap": 200}}],
    ids=["law", "samples", "resamples"],
)
def test_limits_of_other_options_are_not_shown(config, tmp_path, change):
    """Those of another law or number of draws are not today's; the resamples of an interval change no score."""
    train_and_score(config, "mean_image", 0, 0, voxel_crps=0.06)
    score_ceilings(config, voxel_crps=0.04)
    values = study_values(tmp_path)
    changed = parse_config(values | {key: values.get(key, {}) | part for key, part in change.items()})
    train_and_score(changed, "mean_image", 0, 0, voxel_crps=0.06)
    plan = make_plan(changed, [], 1, FakeTimer())
    shown = "true_law" in set(gather_comparison([changed], plan).table["model"])
    assert shown == ("bootstrap" in change.get("evaluate", {}))


def test_limits_of_an_earlier_revision_are_not_shown(config, monkeypatch):
    """The workflow scores them again."""
    train_and_score(config, "mean_image", 0, 0, voxel_crps=0.06)
    monkeypatch.setitem(REVISIONS, "evaluate", REVISIONS["evaluate"] - 1)
    score_ceilings(config, voxel_crps=0.04)
    monkeypatch.undo()
    assert list(gather_comparison([config], make_plan(config, [], 1, FakeTimer())).table["model"]) == ["mean_image"]


def test_limits_of_other_people_are_not_shown(config):
    """The test people have changed since."""
    train_and_score(config, "mean_image", 0, 0, voxel_crps=0.06)
    score_ceilings(config, voxel_crps=0.04)
    train_and_score(config, "mean_image", 0, 0, scans=["sub-1", "sub-4"], voxel_crps=0.06)
    assert list(gather_comparison([config], make_plan(config, [], 1, FakeTimer())).table["model"]) == ["mean_image"]


def test_stress_tests_are_totalled(config):
    """Samples and non-finite voxels are summed over seeds; without a stress test the columns are absent."""
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    for seed in (0, 1):
        train_and_score(config, "dualflow", seed, 10)
    assert "stress samples" not in "".join(comparison_parts(gather_comparison([config], plan), config, plan))
    for seed in (0, 1):
        table = pd.DataFrame({"samples": [250, 250], "nonfinite_voxels": [0, 3 * seed]})
        train_and_score(config, "dualflow", seed, 10, stress=table)
    (row,) = gather_comparison([config], plan).table.to_dict("records")
    assert (row["stress_samples"], row["stress_nonfinite"]) == (1000, 3)
    assert "non-finite voxels" in "".join(comparison_parts(gather_comparison([config], plan), config, plan))


def test_pretraining_counts_among_the_steps(config):
    """Steps that pre-train the source are part of the budget."""
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    train_and_score(config, "dualflow", 0, 10, pretrain=4)
    (row,) = gather_comparison([config], plan).table.to_dict("records")
    assert row["steps"] == 10
    assert (row["train_seconds"], row["pretrain_seconds"]) == (6.0, 3.0)
    assert "".join(comparison_parts(gather_comparison([config], plan), config, plan)).count("pre-training (s)") == 1


@pytest.mark.parametrize(
    "change",
    [{"train": {"learning_rate": 0.1}}, {"train": {"ema": 0.5}}, {"study": {"side": ["sex"]}}],
    ids=["learning rate", "average", "side"],
)
def test_a_training_with_other_options_is_not_listed(config, tmp_path, change):
    """`dualflow compare unet --set train.learning_rate=...` does not mix two rates in one table."""
    values = study_values(tmp_path)
    changed = parse_config(values | {key: values[key] | part for key, part in change.items()})
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    train_and_score(config, "dualflow", 0, 10)
    train_and_score(config, "mean_image", 0, 0)
    assert list(gather_comparison([config], plan).table["model"]) == ["dualflow", "mean_image"]
    left = gather_comparison([changed], plan).table
    assert left.empty if "study" in change else list(left["model"]) == ["mean_image"]


@pytest.mark.parametrize(
    ("options", "left"),
    [({"low_rank": 3}, ["unet"]), ({"low_rank": 2, "hidden": [8, 8, 8]}, [])],
    ids=["the flow", "the network too"],
)
def test_a_model_of_other_layers_is_not_listed(config, tmp_path, options, left):
    """It has as many steps as the new plan, whose training failed. The width of a network follows the flow's size."""
    changed = parse_config(study_values(tmp_path) | {"model": {"preset": "dualflow", "options": options}})
    for name in ("dualflow", "unet"):
        train_and_score(config, name, 0, round(1 / TIMES[name]))
    for study, expected in ((config, ["dualflow", "unet"]), (changed, left)):
        table = gather_comparison([study], make_plan(study, ["dualflow", "unet"], 1, FakeTimer())).table
        assert ([] if table.empty else list(table["model"])) == expected


def test_only_trainings_that_follow_the_plan_are_listed(config):
    """Other steps or scores of other weights are excluded; unmeasured memory is NaN; missing seeds are counted."""
    plan = make_plan(config, list(TIMES), 1, FakeTimer())
    assert gather_comparison([config], plan).table.empty
    train_and_score(config, "dualflow", 0, 10, memory="-")
    train_and_score(config, "dual_glow", 0, 300)
    train_and_score(config, "wide", 0, 5)
    save_card(config.layout.model("wide", 0), "wide", 0, 0.0)
    (row,) = gather_comparison([config], plan).table.to_dict("records")
    assert (row["model"], row["seeds"]) == ("dualflow", 1)
    assert np.isnan(row["memory_mib"])


def test_bits_of_the_small_brains_alone_are_left_out():
    """Folds without a large brain have the exact bits of a closed form; a mean over them would not compare."""
    bits = {"flow": [1.0, 2.0, 3.0], "closed form": [1.0, 2.0, np.nan], "network": [np.nan] * 3}
    rows = [(model, value) for model, values in bits.items() for value in values]
    scores = with_bits_of_all(pd.DataFrame(rows, columns=["model", "bits_in_mask"]))
    assert scores.groupby("model")["bits_in_mask"].count().to_dict() == {"closed form": 0, "flow": 3, "network": 0}
    assert with_bits_of_all(scores[["model"]]).columns.tolist() == ["model"]
