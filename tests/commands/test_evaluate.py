"""Scores of flows: errors of samples, and the warning of the stress test."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal

from dualflow.baselines.residual_density import ClosedFormDensity
from dualflow.commands import evaluate as module
from dualflow.commands.convert_study import convert
from dualflow.commands.evaluate import _closed_form_bits, _flow_scores, _sample_scores, _stress, evaluate
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.evaluation.stress import COLUMNS
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.inference.predict import Prediction


@pytest.fixture(scope="module")
def flow(phantoms):
    """A small untrained flow."""
    torch.manual_seed(0)
    spec = preset("dual_glow", steps=[1, 1, 1], hidden=[8, 8, 8])
    return DualFlow(spec, shape=tuple(phantoms[0]["source"].shape[1:]), side_features=1).eval()


def test_each_image_has_its_error(flow, phantoms):
    """Errors inside the mask: a sample off by 2, the mean of samples off by 2 and -3, and the temperature-0 image."""
    item = phantoms[0]
    target, mask = item["target"][0].numpy(), item["mask"][0].numpy()
    samples = np.stack([np.where(mask, target + shift, 99.0) for shift in (2.0, -3.0)]).astype(np.float32)
    scores = _sample_scores(flow, item, Prediction(target, target, samples, sample_seconds=0.25))
    cold = flow.sample(item["source"][None], item["side"][None], temperature=0.0)[0, 0, 0].numpy()
    assert scores["mae_one_sample"] == pytest.approx(2, rel=1e-5)
    assert scores["mae_sample_mean"] == pytest.approx(0.5, rel=1e-5)
    assert scores["mae_temperature0"] == pytest.approx(np.abs(cold - target)[mask].mean(), rel=1e-5)
    assert scores["sample_seconds"] == 0.25


def test_models_are_scored_on_the_device_of_the_training():
    """A GPU that the training asks for and that is absent is an error of `train.device`."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = parse_config({"study": {"name": "tiny"}, "train": {"device": "cuda"}})
    with pytest.raises(ConfigError, match=r"train\.device = cuda"):
        evaluate(config, ["dualflow"], 0)
    with pytest.raises(ConfigError, match=r"train\.device = cuda"):
        convert(config, "dualflow", 0)


def test_other_models_have_no_flow_scores(phantoms):
    """A model that is not a flow has no columns of flows."""
    item = phantoms[0]
    config = parse_config({"study": {"name": "tiny"}})
    image = item["target"][0].numpy()
    assert _flow_scores(None, phantoms, 0, Prediction(image, image), config) == {}


def test_closed_forms_have_exact_bits(phantoms):
    """They are those of the target's density, without slack; a brain with too many voxels has none."""
    item = phantoms[0]
    model = ClosedFormDensity(tuple(item["source"].shape[1:]), len(item["side"]))
    voxels = int(item["mask"].sum())
    config = parse_config({"study": {"name": "tiny"}, "evaluate": {"closed_form_voxels": voxels}})
    error = item["target"][None] - model.point_estimate(item["source"][None], item["side"][None])
    expected = multivariate_normal(np.zeros(voxels)).logpdf(error[0][item["mask"]].double().numpy())
    model.law.kernel.weights.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    model.law.region_deviation.fill_(item["mask"].numel() ** -0.5)  # as of independent voxels
    scores = _closed_form_bits(model, item, config)
    assert scores.keys() == {"bits_in_mask", "bits_slack"}
    assert scores["bits_in_mask"] == pytest.approx(-expected / voxels / np.log(2), rel=0.001)
    smaller = parse_config({"study": {"name": "tiny"}, "evaluate": {"closed_form_voxels": voxels - 1}})
    assert _closed_form_bits(model, item, smaller) == {}
    assert _closed_form_bits(torch.nn.Identity(), item, config) == {}


def test_non_finite_voxels_cause_a_warning(monkeypatch, capsys, phantoms):
    """Standard error names the model and the number of non-finite voxels; a sound flow causes no output."""
    config = parse_config({"study": {"name": "tiny"}, "evaluate": {"stress": 4}})
    for nonfinite in (0, 5):
        table = pd.DataFrame(
            [(1.0, "own", 2, nonfinite, 1.0), (1.0, "other", 2, nonfinite, 1.0)], columns=list(COLUMNS)
        )
        monkeypatch.setattr(module, "stress", lambda *_, table=table: table)
        _stress(None, phantoms, config, "flow, seed 0")
        errors = capsys.readouterr().err
        assert ("warning: flow, seed 0: 10 voxels" in errors) == bool(nonfinite)
