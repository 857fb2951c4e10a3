"""Scores of one scan beside those of its mean and spread: densities, and errors of samples."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from dualflow.baselines.residual_density import ClosedFormDensity
from dualflow.config import parse_config
from dualflow.evaluation.scan_scores import closed_form_bits, flow_scores, sample_scores, with_exact_bits
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
    scores = sample_scores(flow, item, Prediction(target, target, samples, sample_seconds=0.25))
    cold = flow.sample(item["source"][None], item["side"][None], temperature=0.0)[0, 0, 0].numpy()
    assert scores["mae_one_sample"] == pytest.approx(2, rel=1e-5)
    assert scores["mae_sample_mean"] == pytest.approx(0.5, rel=1e-5)
    assert scores["mae_temperature0"] == pytest.approx(np.abs(cold - target)[mask].mean(), rel=1e-5)
    assert scores["sample_seconds"] == 0.25


def test_other_models_have_noflow_scores(phantoms):
    """A model that is not a flow has no columns of flows."""
    item = phantoms[0]
    config = parse_config({"study": {"name": "tiny"}})
    image = item["target"][0].numpy()
    assert flow_scores(None, phantoms, 0, Prediction(image, image), config) == {}


def test_closed_forms_have_exact_bits(phantoms):
    """They are those of the target's density, without slack."""
    item = phantoms[0]
    model = ClosedFormDensity(tuple(item["source"].shape[1:]), len(item["side"]))
    voxels = int(item["mask"].sum())
    error = item["target"][None] - model.point_estimate(item["source"][None], item["side"][None])
    expected = multivariate_normal(np.zeros(voxels)).logpdf(error[0][item["mask"]].double().numpy())
    model.law.kernel.weights.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    model.law.region_deviation.fill_(item["mask"].numel() ** -0.5)  # as of independent voxels
    scores = closed_form_bits(model, item)
    assert scores.keys() == {"bits_in_mask", "bits_slack"}
    assert scores["bits_in_mask"] == pytest.approx(-expected / voxels / np.log(2), rel=0.001)


def test_exact_bits_need_small_brains_of_all_scans(phantoms):
    """A mean over the small brains alone would not compare with that of models that have all; a network has none."""
    model = ClosedFormDensity(tuple(phantoms[0]["source"].shape[1:]), len(phantoms[0]["side"]))
    *_, largest = sorted(int(item["mask"].sum()) for item in phantoms.items)
    for limit, expected in ((largest, True), (largest - 1, False)):
        config = parse_config({"study": {"name": "tiny"}, "evaluate": {"closed_form_voxels": limit}})
        assert with_exact_bits(model, phantoms, config) is (model if expected else None)
        assert with_exact_bits(torch.nn.Identity(), phantoms, config) is None
