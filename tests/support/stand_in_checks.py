"""Trainings, predictions, scores and conversions on the stand-in device; `contracts/test_device.py` runs this file."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SHAPE, SMALL
from stand_in_device import register, stand_in_device

from dualflow.baselines import BASELINES
from dualflow.config import ConvertConfig, ModelConfig, parse_config
from dualflow.evaluation.scan_scores import flow_scores
from dualflow.evaluation.stress import stress
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.memory import set_memory
from dualflow.flows.objective import Batch
from dualflow.imaging.regions import RegionMap
from dualflow.imaging.volume import read_volume
from dualflow.inference.convert import Converter
from dualflow.inference.predict import load_predictor
from dualflow.inference.verdict import Verdict
from dualflow.layout import Layout, Scan
from dualflow.modalities import MODALITIES
from dualflow.models.store import load_model, save_model
from dualflow.training import calibrate, fit_base, learning_rate, refit_whitening
from dualflow.training.context import TrainingContext
from dualflow.training.device import device_of
from dualflow.training.distributed import ProcessGroup
from dualflow.training.train_flow import train_flow

CPU = torch.device("cpu")
FITTED = (
    "voxelwise_linear", "stacked_mixture", "stacked_source_scale", "unet_heteroscedastic", "pix2pix", "cvae",
    "rectified_flow", "latent_diffusion",
)  # fmt: skip
"""Baselines of each kind."""


@pytest.fixture(scope="module", autouse=True)
def device(reference, baselines):
    """The stand-in device; what runs on the CPU alone has run before."""
    with stand_in_device() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def reference(train):
    """A training on the CPU."""
    register()
    return train(CPU)


@pytest.fixture(scope="module")
def baselines(phantoms, card, tmp_path_factory):
    """Folders of fitted baselines by name, with the point estimate of a scan on the CPU."""
    fitted = {}
    for name in FITTED:
        model, folder = BASELINES[name](SHAPE, 1, 1), tmp_path_factory.mktemp(name)
        model.fit(phantoms, [0, 1, 0, 1, 0, 1])
        save_model(folder, model, card.model_copy(update={"kind": name, "spec": None}))
        item = phantoms[1]
        fitted[name] = folder, load_model(folder).model.point_estimate(item["source"][None], item["side"][None])
    return fitted


@pytest.fixture(scope="module")
def predictors(model_folder, device):
    """The same flow on the CPU and on the device."""
    return load_predictor(model_folder), load_predictor(model_folder, device)


def test_devices_do_not_mix(device):
    """An operation on tensors of both devices fails, and so does `numpy`; a scalar of the CPU is allowed."""
    x = torch.ones(3).to(device)
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]


@pytest.fixture(scope="module")
def train(phantoms, held_out, quick, tmp_path_factory):
    """Return a function that trains a flow for two steps on a device; the default's mean is fitted as a baseline."""

    def run(device):
        flow = ModelConfig(preset="dualflow", options=SMALL | {"mean": "local_linear"})
        config = quick.model_copy(update={"steps": 2, "validate_every": 1})
        group, folder = ProcessGroup(device=device), tmp_path_factory.mktemp("training")
        context = TrainingContext(config, folder, 0, group=group)
        with pytest.MonkeyPatch.context() as patch:
            # The stand-in has no bfloat16, and directions rounded on the CPU alone would differ.
            patch.setattr(fit_base, "autocast", lambda *_: nullcontext())
            # Each operation takes the time of Python: fewer samples and factors take the same ways.
            patch.setattr(calibrate, "SAMPLES", calibrate.SAMPLES_AT_ONCE)
            patch.setattr(calibrate, "MAX_PEOPLE", 3)
            patch.setattr(refit_whitening, "FACTORS", refit_whitening.FACTORS[:2])
            return train_flow(flow, phantoms, held_out, context)

    return run


def test_a_training_gives_the_losses_of_the_cpu(train, reference, device):
    """Fit, initialisation, steps, validation, states and calibration run on the device."""
    trained = train(device)
    assert device_of(trained.model) == device
    for entry, expected in zip(trained.history.entries, reference.history.entries, strict=True):
        assert entry == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert trained.record.calibration == pytest.approx(reference.record.calibration, rel=1e-3)


@pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
def test_recomputed_gradients_equal_those_of_the_cpu(memory, model_folder, phantoms, device):
    """A step of each mode that recomputes activations, of the same flow and with the same noise."""

    def gradients(where):
        torch.manual_seed(0)  # of the discriminators, and of the noise of the step
        objective = FlowObjective(load_model(model_folder).model).train()
        with torch.no_grad():
            for parameter in objective.parameters():  # last layers that are zero pass no gradient on
                parameter.add_(0.05 * torch.randn_like(parameter))
        objective.to(where)
        set_memory(objective, memory)
        items = [{name: phantoms[i][name].to(where) for name in ("source", "target", "side", "mask")} for i in (0, 2)]
        objective(Batch(**{name: torch.stack([item[name] for item in items]) for name in items[0]}))["loss"].backward()
        return {name: p.grad.cpu() for name, p in objective.named_parameters() if p.grad is not None}

    expected, largest = gradients(CPU), []
    for name, gradient in gradients(device).items():
        largest.append(float(expected[name].abs().max()))
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3 * largest[-1] + 1e-9)
    assert np.mean(np.array(largest) > 1e-6) > 0.9


def test_learning_rates_are_swept_on_the_device(phantoms, held_out, monkeypatch, device):
    """The discriminators are on the device too."""
    pairs = None, SimpleNamespace(names=["age"]), phantoms, held_out
    for name, value in {
        "learning_pairs": lambda _: pairs, "select_device": lambda _: device, "STEPS": 3,
        "suggest_rate": lambda frame: float(frame["loss"].iloc[0]),
    }.items():  # fmt: skip
        monkeypatch.setattr(learning_rate, name, value)
    monkeypatch.setattr(fit_base, "autocast", lambda *_: nullcontext())  # as in `train`
    model = {"preset": "dualflow", "options": SMALL | {"mean": "local_linear"}}
    config = parse_config({"study": {"name": "tiny"}, "model": model, "train": {"precision": "float32"}})
    assert math.isfinite(learning_rate.find_learning_rate(config))


def test_a_prediction_equals_that_of_the_cpu(predictors, phantoms):
    """Equal seeds give equal samples, and the prediction is in CPU memory."""
    item = phantoms[0]
    here, there = (
        predictor.predict(item["source"], item["side"], item["mask"], samples=5, temperature=1.0, seed=3)
        for predictor in predictors
    )
    for name in ("mean", "std", "samples", "sample_mean"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", FITTED)
def test_a_baseline_predicts_on_the_device(name, baselines, phantoms, device):
    """Its point estimate equals that of the CPU."""
    (folder, expected), item = baselines[name], phantoms[1]
    source, side = item["source"][None].to(device), item["side"][None].to(device)
    estimate = load_model(folder, device).model.point_estimate(source, side)
    torch.testing.assert_close(estimate.cpu(), expected, rtol=1e-3, atol=1e-5)


def test_scores_equal_those_of_the_cpu(predictors, phantoms):
    """Likelihood, explained variance, round trips, sample errors and the stress test of a scan."""
    config = parse_config({"study": {"name": "tiny"}, "evaluate": {"background_steps": 2}})
    item, scores, tables = phantoms[0], [], []
    for predictor in predictors:
        prediction = predictor.predict(item["source"], item["side"], item["mask"], samples=4, temperature=1.0, seed=0)
        scores.append(flow_scores(predictor.flow, phantoms, 0, prediction, config))
        tables.append(stress(predictor.flow, phantoms, 8, seed=0))
    for values in scores:
        del values["sample_seconds"]
        assert values.pop("round_trip_float64") < 1e-9
        assert values.pop("round_trip_float32") < 1e-3
    assert scores[1] == pytest.approx(scores[0], rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(tables[1]["largest"], tables[0]["largest"], rtol=1e-3)


def test_a_conversion_equals_that_of_the_cpu(predictors, phantoms, tmp_path):
    """The volumes on the native grid."""
    affine, item = np.diag([4.0, 4, 4, 1]).tolist(), phantoms[0]
    grid = {"affine": affine, "shape": list(SHAPE)}
    source = {"file": "t1.nii", "sha256": "0"}
    record = {"grid": grid, "native_grid": grid, "source_to_template": np.eye(4).tolist(), "source": source}
    mask, config = item["mask"][0].numpy(), ConvertConfig(samples=3, keep_samples=1)
    regions = RegionMap(mask.astype(np.int32), ("ctx-lh-cuneus",), (4.0, 4.0, 4.0))

    def convert(name, predictor):
        layout = Layout(tmp_path / name, ".")
        converter = Converter(predictor, None, regions, layout, MODALITIES["T1w"], MODALITIES["FDG"], config)
        return converter._write(Scan("01"), converter._predict(item), Verdict(), mask, record, mask, {})[0]

    here, there = (convert(name, predictor) for name, predictor in zip("ab", predictors, strict=True))
    assert here.keys() == {"synth", "synthmean", "synthstd", "synth01", "regions"}
    del there["regions"]
    for desc, path in there.items():
        np.testing.assert_allclose(read_volume(path).array, read_volume(here[desc]).array, rtol=1e-3, atol=1e-5)
