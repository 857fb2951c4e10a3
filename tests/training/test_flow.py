"""Training of a flow on six tiny phantoms, mean and all."""

import math

import pytest
import torch

from dualflow.config import ModelConfig
from dualflow.data.dataset import PairDataset
from dualflow.errors import DataError
from dualflow.flows.mean import NetworkMean
from dualflow.inference.predict import load_predictor
from dualflow.training import flow as module
from dualflow.training.checkpoint import save_model, states
from dualflow.training.flow import mean_folder, train_flow


@pytest.fixture
def train(phantoms, held_out, quick, tmp_path):
    """Train a flow in a folder."""

    def go(choice, folder="states", config=quick, pairs=phantoms, **options):
        options = {"side_features": 1, "label": "flow", "seed": 0, "folder": tmp_path / folder} | options
        return train_flow(choice, pairs, held_out, config, **options)

    return go


def test_trained_flow_has_a_finite_history_and_reads_back(train, small_flow, card, tmp_path, held_out):
    """Saved and loaded, it gives the same image, density and samples; its history is finite and it is invertible."""
    trained = train(small_flow)
    assert [entry["step"] for entry in trained.history.entries] == [2, 4, 6]
    assert all(math.isfinite(value) for entry in trained.history.entries for value in entry.values())
    assert all(entry["validation/round_trip"] < 1e-3 for entry in trained.history.entries)
    assert trained.facts["mean"]["ridge"] > 0
    save_model(tmp_path / "model", trained.model.state_dict(), card | {"spec": trained.model.spec.to_dict()})
    loaded = load_predictor(tmp_path / "model").model
    item = held_out[0]
    target, source, side = (item[name][None] for name in ("target", "source", "side"))
    assert torch.equal(loaded.point_estimate(source, side), trained.model.point_estimate(source, side))
    assert torch.equal(loaded.log_prob(target, source, side), trained.model.log_prob(target, source, side))
    drawn = [
        model.sample(source, side, n=2, generator=torch.Generator().manual_seed(1)) for model in (loaded, trained.model)
    ]
    assert torch.equal(*drawn)


def test_the_flow_is_trained_on_cross_fitted_means(train, small_flow, phantoms, monkeypatch):
    """Its means are those of people left out: worse than the final law's on the same people, which has seen them."""
    given = {}

    def spy(model, pairs, *rest, **options):
        given.update(model=model, pairs=pairs)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", spy)
    with pytest.raises(KeyboardInterrupt):
        train(small_flow)
    errors = {"left out": 0.0, "seen": 0.0}
    for item in given["pairs"].items:
        seen = given["model"].mean(item["source"][None], item["side"][None])[0]
        for name, image in (("left out", item["mean"]), ("seen", seen)):
            errors[name] += float((image - item["target"])[item["mask"]].square().mean())
            assert not image[~item["mask"]].any()
    assert errors["left out"] > 1.2 * errors["seen"] > 0
    assert "mean" not in phantoms[0]


def test_initialisation_takes_a_capped_seeded_choice_of_scans(train, small_flow, phantoms, monkeypatch):
    """However many there are; the seed decides which, and they come with their own means."""
    chosen = []

    def spy(model, target, source, side, mean):
        chosen.append([next(i for i in range(len(phantoms)) if torch.equal(phantoms[i]["target"], t)) for t in target])
        assert mean.shape == target.shape
        raise KeyboardInterrupt

    monkeypatch.setattr(module.DualFlow, "initialize", spy)
    monkeypatch.setattr(module, "INITIALISATION_SCANS", 3)
    for seed in (0, 0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(small_flow, seed=seed)
    assert all(len(set(positions)) == 3 for positions in chosen)
    assert chosen[0] == chosen[1]
    assert len({tuple(positions) for positions in chosen}) > 1


def test_a_resumed_flow_equals_an_unbroken_one_bit_for_bit(train, small_flow):
    """With mean, actnorms and low-rank base, stopped between two validations."""

    def stop(step, metrics, model):
        if step == 4:
            raise KeyboardInterrupt

    unbroken = train(small_flow, "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(small_flow, "broken", watch=stop)
    resumed = train(small_flow, "broken")
    left, right = (result.model.state_dict() for result in (unbroken, resumed))
    assert all(torch.equal(value, right[key]) for key, value in left.items())
    assert unbroken.history.entries == resumed.history.entries


def test_a_network_mean_is_trained_first_and_then_kept(train, tmp_path, quick):
    """It has states of its own; the flow's training leaves it as it was."""
    options = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "mean": "network", "low_rank": 0}
    choice = ModelConfig(preset="dualflow", options=options)
    trained = train(choice, config=quick.model_copy(update={"mean_steps": 3, "steps": 2}))
    assert isinstance(trained.model.mean_model, NetworkMean)
    assert [state.stem for state in states(mean_folder(tmp_path / "states"))] == ["state-00000002", "state-00000003"]
    again = train(choice, config=quick.model_copy(update={"mean_steps": 3, "steps": 4}))
    left, right = (result.model.mean_model.state_dict() for result in (trained, again))
    assert all(torch.equal(value, right[key]) for key, value in left.items())


def test_validation_chooses_between_the_means(train, tmp_path, quick):
    """With `choose_mean` both are fitted, the better one is kept, and the card says how well each did."""
    options = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "low_rank": 0}
    trained = train(
        ModelConfig(preset="dualflow", options=options),
        config=quick.model_copy(update={"choose_mean": True, "mean_steps": 3, "steps": 2}),
    )
    errors = trained.facts["mean"]["validation_mae"]
    assert set(errors) == {"local_linear", "network"}
    assert trained.model.spec.mean == min(errors, key=errors.get)


def test_nothing_to_train_on_is_said(train, small_flow):
    """One line, before anything is built."""
    with pytest.raises(DataError, match="no training pairs"):
        train(small_flow, pairs=PairDataset([]))
