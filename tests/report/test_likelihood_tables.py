"""Tables on likelihood, samples and numerical stability of the flows."""

import numpy as np
import pandas as pd
import pytest

from dualflow.evaluation.condition_check import subject_check
from dualflow.flows.presets import preset
from dualflow.modalities import MODALITIES
from dualflow.models.card import ModelCard, TrainingRecord
from dualflow.report.likelihood_tables import (
    bits_table,
    check_condition,
    explained_table,
    explaining_flows,
    image_table,
    likelihood_summary,
    safety_table,
    source_table,
    stress_totals,
)

ROW = MODALITIES["FDG"]


@pytest.fixture
def scores():
    """A flow of three levels, one of two, and a model without a density; one subject has three sessions."""
    scans = ["sub-1_ses-a", "sub-1_ses-b", "sub-1_ses-c", "sub-2"]
    common = {
        "scan": scans, "bits_in_mask": [1.0, 1.0, 1.0, 2.0], "bits_slack": 0.02, "bits_effective_draws": 1.5,
        "nll_true": [1.0, 1.0, 1.0, 3.0], "nll_wrong": [2.0, 3.0, 4.0, 2.0], "nll_blurred": 5.0,
        "mae": [0.1, 0.1, 0.1, 0.3], "mae_temperature0": 0.2, "mae_one_sample": 0.4, "mae_sample_mean": 0.25,
        "sample_seconds": 0.5, "explained_level_1": 0.1, "explained_level_2": 0.2,
        "explained_other_level_1": 0.05,
        "round_trip_float32": [1e-6, 4e-6, 1e-6, 1e-6], "round_trip_float64": [1e-15, np.nan, np.nan, np.nan],
    }  # fmt: skip
    return pd.concat(
        [
            pd.DataFrame({"model": "flow", "seed": 0, **common, "explained_level_3": 0.3}),
            pd.DataFrame({"model": "glow", "seed": 0, **common}),
            pd.DataFrame({"model": "unet", "seed": 0, "scan": scans, "mae": 0.1}),
        ]
    )


def test_subjects_have_equal_weights(scores):
    """A subject with three sessions counts once in the share and in the gain."""
    check = check_condition(scores, "flow")
    assert check is not None
    assert (check.subjects, check.share) == (2, 0.5)
    assert check.gain == pytest.approx((2.0 - 1.0) / 2)
    blurred = check_condition(scores, "flow", "nll_blurred")
    assert blurred is not None
    assert (blurred.share, blurred.gain) == (1.0, 3.0)
    assert check_condition(scores, "unet") is None
    assert check_condition(scores.drop(columns="nll_wrong"), "flow") is None


def test_the_check_is_that_of_the_comparison(scores):
    """A subject without a finite NLL under one of the sources is left out, as in `dualflow compare`."""
    flow = scores[scores["model"] == "flow"].assign(nll_wrong=[2.0, 3.0, 4.0, np.inf])
    check = check_condition(flow, "flow")
    assert check == subject_check(flow, "nll_true", "nll_wrong")
    assert (check.subjects, check.share, check.gain) == (1, 1.0, 2.0)
    assert check_condition(flow.assign(nll_true=np.nan), "flow") is None


def test_numbers_are_means_over_subjects(scores):
    """Subjects have equal weights; round-trip errors are maxima."""
    numbers = likelihood_summary(scores, ["flow", "glow"]).set_index("model")
    assert numbers.loc["flow", "mae"] == pytest.approx(0.2)
    assert numbers.loc["flow", "round_trip_float32"] == 4e-6
    assert numbers.loc["flow", "round_trip_float64"] == 1e-15
    assert numbers.loc["flow", "nll_blurred/gain"] == 3.0
    assert numbers.loc["flow", "explained_level_3"] == pytest.approx(0.3)
    assert np.isnan(numbers.loc["glow", "explained_level_3"])


def test_a_flow_without_a_finite_density_keeps_its_row(scores):
    """Its row has the known numbers."""
    scores.loc[scores["model"] == "glow", ["nll_true", "nll_wrong", "nll_blurred"]] = np.nan
    numbers = likelihood_summary(scores, ["flow", "glow"]).set_index("model")
    assert np.isnan(numbers.loc["glow", "nll_wrong/share"])
    assert numbers.loc["glow", "mae_one_sample"] == pytest.approx(0.4)
    assert len(source_table(numbers.reset_index()).frame) == 4


def test_a_single_subject_has_no_alternative_source(scores):
    """Without another subject, the scores that need one are NaN and the others are present."""
    single = scores.drop(columns=["nll_wrong", "explained_other_level_1"])
    numbers = likelihood_summary(single, ["flow"])
    assert np.isnan(numbers.loc[0, "nll_wrong"])
    assert len(source_table(numbers).frame) == 2


def test_tables_show_the_numbers(scores):
    """Each flow has a row per alternative source, a dash for a missing level, and a column per image."""
    numbers = likelihood_summary(scores, ["flow", "glow"])
    sources = source_table(numbers).frame
    assert sources["Model"].tolist() == ["flow", "flow", "glow", "glow"]
    assert sources["True source likelier"].iloc[0].startswith("50 % [")
    assert sources["Difference"].tolist()[:2] == ["0.5000", "3.0000"]
    images = image_table(numbers, ROW).frame
    assert images.columns.tolist()[1:5] == ["Point estimate", "Temperature 0", "One sample", "Mean of samples"]
    assert images.iloc[0, 1:].tolist() == ["0.2000", "0.2000", "0.4000", "0.2500", "0.5000"]
    levels = explained_table(numbers, ["flow", "glow"]).frame
    assert levels.columns.tolist() == ["Model", "Level 1", "Level 2", "Level 1, another subject's source", "Level 3"]
    assert levels["Level 1, another subject's source"].tolist() == ["0.050", "0.050"]
    assert levels["Level 3"].tolist() == ["0.300", "–"]  # noqa: RUF001


def test_only_flows_whose_prior_has_a_mean_explain_latents(scores, card):
    """The default's prior learns scales alone and DUAL-GLOW's a mean, so only the second has a row."""
    dual_glow = card.model_copy(update={"name": "glow", "spec": preset("dual_glow")})
    cards = {"a": card.model_copy(update={"name": "flow"}), "b": dual_glow}
    assert explaining_flows(cards) == ["glow"]
    assert explained_table(likelihood_summary(scores, ["flow", "glow"]), ["glow"]).frame["Model"].tolist() == ["glow"]


def test_stress_tables_are_summed_over_seeds(scores):
    """The table counts the non-finite voxels of all seeds and settings; the caption states a missing stress test."""
    numbers = likelihood_summary(scores, ["flow", "glow"])
    settings = {
        "temperature": [0.0, 1.0],
        "source": "own",
        "samples": [3, 2],
        "nonfinite_voxels": [0, 7],
        "largest": [2, 4],
    }
    tables = pd.concat([pd.DataFrame(settings).assign(model=name) for name in ("glow", "glow", "flow")])
    totals = stress_totals(tables)
    table = safety_table(numbers, totals, ROW)
    assert table.frame["Model"].tolist() == ["flow", "glow"]
    assert table.frame["Stress samples"].tolist() == ["5", "10"]
    assert table.frame["Non-finite voxels"].tolist() == ["7", "14"]
    assert "No stress samples" in safety_table(numbers, None, ROW).caption


def test_the_caption_names_the_unit_of_the_density(scores):
    """The NLL is in nats per voxel of the mask, not of the grid."""
    table = source_table(likelihood_summary(scores, ["flow"]))
    assert "nats per voxel of the mask" in table.caption
    assert table.frame["NLL, true source"].tolist() == ["2.0000", "2.0000"]
    assert table.frame["Difference"].tolist() == ["0.5000", "3.0000"]


def card(name, seed, **calibration):
    """A model card whose training recorded these facts on the calibration."""
    return ModelCard(
        name=name, seed=seed, kind="mean_image", shape=(8, 8, 8), side={"columns": []},
        study={"name": "x", "source": "T1w", "target": "FDG"}, training=TrainingRecord(calibration=calibration),
    )  # fmt: skip


def test_bits_have_their_slack_and_calibration(scores):
    """Facts on the calibration are means over seeds; without any, the table has no such column."""
    numbers = likelihood_summary(scores, ["flow", "glow"])
    assert numbers["bits_in_mask"].tolist() == [1.5, 1.5]
    cards = [card("flow", seed, nats_before=-1.0 - seed, nats_after=-2.0) for seed in (0, 1)] + [card("glow", 0)]
    whole = bits_table(numbers, {f"{entry.name} {entry.seed}": entry for entry in cards})
    assert whole.caption.endswith("nats per voxel of the grid, of one scan each of at most 20 validation subjects.")
    table = whole.frame
    assert table.iloc[0].tolist()[1:] == ["1.500", "0.020", f"{2.0 / np.log(2):.3f}", "1.500", "-1.500", "-2.000"]
    assert table.iloc[1].tolist()[-2:] == ["–", "–"]  # noqa: RUF001
    without = bits_table(numbers, {"glow 0": card("glow", 0)})
    assert without.frame.columns.tolist()[-1] == "Effective draws"
    assert "calibration" not in without.caption
    few = bits_table(numbers, {"flow 0": card("flow", 0, nats_before=1.0, nats_after=1.0, cross_fitted=1.0)})
    assert "at most 20 training subjects by cross-fitting, because there are too few validation" in few.caption
