"""The tracked run of a model: its parameters alone, no flat curves, and no folders or labels."""

import json
import zlib
from base64 import b64decode

import pytest
from comparison import study_values

from dualflow.commands import model_runs
from dualflow.commands.model_runs import (
    constant_metrics,
    data_source,
    describe_model,
    model_parameters,
    score_names,
    study_view,
    training_of,
)
from dualflow.config import parse_config
from dualflow.flows.presets import preset


@pytest.fixture
def config(tmp_path):
    values = study_values(tmp_path)
    return parse_config(values | {"split": {"folds": 3, "fold": 1}})


def test_parameters_are_those_of_the_model(config):
    """A flow has its pieces, a network its optimiser, a closed form neither, and the mean image no source."""
    flow, variant, network, closed_form = (
        model_parameters(config, name, 1, "bfloat16") for name in ("dual_glow", "wide", "unet", "mean_image")
    )
    assert (flow["kind"], flow["preset"], flow["steps"], flow["flow"]["mean"]) == ("flow", "dual_glow", 7, "none")
    assert (variant["model"], variant["preset"], variant["flow"]["hidden"]) == ("wide", "dualflow", [8, 8, 8])
    assert (network["kind"], network["steps"], network["learning_rate"]) == ("network", 600, 0.001)
    assert flow["validate_every"] == network["validate_every"] == 100  # a validation chooses the kept weights
    assert "flow" not in network
    assert (network["mean"], network["source"], network["side"]) == ("stacked", "T1w", "age")
    assert (flow["precision"], network["precision"]) == ("bfloat16", "bfloat16")
    assert "precision" not in model_parameters(config, "unet", 1, "")
    assert closed_form == {
        "model": "mean_image", "kind": "closed form", "seed": 1, "target": "FDG",
        "spacing_mm": 4.0, "shape": "16 x 16 x 16", "folds": 3, "fold": 1,
    }  # fmt: skip


def test_curves_that_training_cannot_change_are_left_out():
    """The error of a closed-form mean, the share that a prior of mean 0 explains, and discriminators without weight."""
    assert constant_metrics(None) == ()
    assert set(constant_metrics(preset("dualflow"))) == {
        "validation/mae", "validation/pearson_r", "validation/explained_",
    }  # fmt: skip
    assert not any(name.startswith("validation/mae") for name in constant_metrics(preset("dual_glow")))


def test_the_description_has_scores_and_a_picture(config):
    """Scores have their units, the most important come first, and the picture is that of the run itself."""
    text = describe_model(config, "unet", 0, {"mae": 0.12345, "psnr": 20.0})
    assert text.startswith("**unet**, network: T1w to FDG, seed 0, fold 1 of 3.")
    assert text.splitlines()[2] in {f"Means over the test people: MAE (SUVR) {mae}." for mae in ("0.1234", "0.1235")}
    # As in the report, no minus sign before a value that rounds to zero.
    assert "| Region bias (%) | 0.00 |" in describe_model(config, "unet", 0, {"region_bias": -0.003})
    assert "| MAE (SUVR) | 0.1235 |" in text or "| MAE (SUVR) | 0.1234 |" in text
    assert "get-artifact?path=pictures/test.png&run_uuid={run_id}" in text
    assert "| test score | all test people |" in text
    assert score_names({"mae": 0.1, "region_mae": 2.0, "ssim": 0.9, "ad_roi_r": 0.8}, config) == {
        "test/mae_SUVR": 0.1, "test/region_mae_percent": 2.0, "test/ssim": 0.9, "test/ad_roi_r": 0.8,
    }  # fmt: skip


def test_the_view_of_a_study_has_metrics_that_its_runs_track(config):
    """Scores and curves have their units, and validation metrics the names that a training logs."""
    envelope = json.loads(study_view(config))
    state = json.loads(zlib.decompress(b64decode(envelope["state"].removeprefix("deflate;"))))
    charts = [chart["metricKey"] for chart in state["compareRunCharts"]]
    assert charts[:2] == ["test/region_crps_SUVR", "test/mae_SUVR"]
    assert {"validation/nll_nats_per_voxel", "train/loss_nats_per_voxel", "train/loss_SUVR"} <= set(charts)
    assert state["orderByKey"] == "metrics.`test/region_crps_SUVR`"
    assert state["selectedColumns"][-1] == "metrics.`train/best_step`"


def test_the_source_of_a_dataset_names_no_folder(config, tmp_path):
    """A simulated cohort is named by the command that makes it again, others by their kind."""
    assert data_source(config) == "dualflow cohort --subjects 40 --seed 0 --law regional"
    study = config.study.model_copy(update={"bids": tmp_path})
    assert data_source(config.model_copy(update={"study": study})) == "a BIDS dataset"


def test_the_recorded_command_is_that_of_the_training(config, monkeypatch):
    """It names no file or folder, so an evaluation with another configuration file continues the training's run."""
    keys = []
    monkeypatch.setattr(model_runs, "tracked", lambda _, *key, **options: keys.append(key))
    evaluation = config.evaluate.model_copy(update={"bootstrap": 100})
    for study in (config, config.model_copy(update={"evaluate": evaluation})):
        model_runs.model_run(study, "unet", 2, "digest")
    assert keys[0] == keys[1]
    assert keys[0][2]["mlflow.source.name"] == "dualflow train --model unet --seed 2"


def test_a_training_without_a_manifest_has_no_run(config):
    """Its evaluation then opens a run of its own."""
    assert training_of(config.layout, "unet", 0) == ""
