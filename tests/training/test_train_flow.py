"""Training of a flow on six tiny phantoms, mean and all."""

import math

import pytest
import torch

from dualflow.config import ModelConfig
from dualflow.data.dataset import PairDataset
from dualflow.errors import DataError
from dualflow.flows.mean_models import NetworkMean
from dualflow.inference.predict import load_predictor
from dualflow.models.store import save_model
from dualflow.training import train_flow as module
from dualflow.training.calibrate import calibrate
from dualflow.training.checkpoint import load_newest_state, states
from dualflow.training.context import TrainingContext
from dualflow.training.train_flow import train_flow


@pytest.fixture
def train(phantoms, held_out, quick, tmp_path):
    """Train a flow in a folder."""

    def go(choice, folder="states", config=quick, pairs=phantoms, seed=0, **options):
        context = TrainingContext(config, tmp_path / folder, seed, label="flow", **options)
        return train_flow(choice, pairs, held_out, context, side_features=1)

    return go


def test_trained_flow_has_a_finite_history_and_reads_back(train, small_flow, card, tmp_path, held_out):
    """Saved and loaded, it gives the same image, density and samples; its history is finite and it is invertible."""
    trained = train(small_flow)
    assert [entry["step"] for entry in trained.history.entries] == [2, 4, 6]
    assert all(math.isfinite(value) for entry in trained.history.entries for value in entry.values())
    assert all(entry["validation/round_trip"] < 1e-3 for entry in trained.history.entries)
    assert trained.record.mean["ridge"] > 0
    save_model(tmp_path / "model", trained.model, card.model_copy(update={"spec": trained.model.spec}))
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

    def spy(trainer):
        given.update(model=trainer.objective.flow, pairs=trainer.train)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Trainer, "fit", spy)
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

    def spy(model, target, source, side, mask, mean):
        chosen.append([next(i for i in range(len(phantoms)) if torch.equal(phantoms[i]["target"], t)) for t in target])
        assert mask.dtype == torch.bool
        assert mask.shape == mean.shape == target.shape
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "initialize_flow", spy)
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


def test_a_flow_is_told_how_much_of_its_training_is_done(train, small_flow, monkeypatch):
    """Before each of six steps, from 0 on, and also after a resumption."""
    told = []
    monkeypatch.setattr(module.FlowObjective, "set_progress", lambda objective, share: told.append(share))

    def stop(step, metrics, model):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_flow, watch=stop)
    assert told == pytest.approx([step / 6 for step in range(4)])
    told.clear()
    train(small_flow)  # from the state of step 2
    assert told == pytest.approx([step / 6 for step in range(2, 6)])


class Steps:
    """Counts the training steps of pre-training, and stops before a given one."""

    def __init__(self, monkeypatch):
        self.taken, self.stop, forward = 0, None, module.SourceObjective.forward

        def counted(trainer, *args, **inputs):
            if trainer.training and self.taken == self.stop:
                raise KeyboardInterrupt
            self.taken += trainer.training
            return forward(trainer, *args, **inputs)

        monkeypatch.setattr(module.SourceObjective, "forward", counted)


PRETRAINED = ModelConfig(
    preset="srflow",
    options={
        "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "transition_steps": 1,
        "source_pretrain": 0.5, "source_frozen": 0.5,
    },
)  # fmt: skip


def source_of(model):
    return {key: value.clone() for key, value in model.source.state_dict().items()}


def test_a_source_is_trained_first_and_frozen_for_its_share(train, tmp_path, monkeypatch):
    """Of six steps three; then it is held for half of the flow's own, and the card tells steps and seconds of both."""
    steps, sources = Steps(monkeypatch), []
    set_progress = module.FlowObjective.set_progress

    def watched(objective, share):
        sources.append(source_of(objective.flow))
        set_progress(objective, share)

    monkeypatch.setattr(module.FlowObjective, "set_progress", watched)
    trained = train(PRETRAINED, watch=lambda step, metrics, objective: sources.append(source_of(objective.flow)))
    assert steps.taken == trained.record.pretrain_steps == 3
    assert [entry["step"] for entry in trained.history.entries] == [2, 3]
    assert trained.record.pretrain_seconds > 0
    start, second, after_second, third, end = sources
    torch.manual_seed(0)
    untrained = source_of(module.DualFlow(trained.model.spec, shape=(16, 16, 16), side_features=1))
    assert not torch.equal(start["stem.weight"], untrained["stem.weight"])
    found = load_newest_state(tmp_path / "states" / "source")
    assert found is not None
    assert torch.equal(start["stem.weight"], found[0]["best.flow.source.stem.weight"])
    # progress 0 and 1/3 are frozen, 2/3 is not
    for held in (second, after_second, third):
        assert all(torch.equal(value, held[key]) for key, value in start.items())
    assert not torch.equal(end["stem.weight"], start["stem.weight"])


def test_a_flow_without_pretraining_says_nothing_of_it(train, small_flow, monkeypatch):
    """Nothing is trained before, and no seconds are told."""
    steps = Steps(monkeypatch)
    record = train(small_flow).record
    assert steps.taken == record.pretrain_steps == 0
    assert record.pretrain_seconds == 0


@pytest.mark.parametrize(("stop", "left"), [(2, 1), (None, 0)], ids=["while its source learns", "afterwards"])
def test_a_resumed_pretraining_equals_an_unbroken_one_bit_for_bit(train, tmp_path, monkeypatch, stop, left):
    """It goes on from its own states, below the flow's; what is done is not done again, and its seconds are kept."""
    steps = Steps(monkeypatch)
    unbroken = train(PRETRAINED, "unbroken")

    def stop_flow(step, metrics, model):
        raise KeyboardInterrupt

    steps.taken, steps.stop = 0, stop
    with pytest.raises(KeyboardInterrupt):
        train(PRETRAINED, "broken", watch=stop_flow)
    assert "state-00000002" in [state.stem for state in states(tmp_path / "broken" / "source")]
    steps.taken, steps.stop = 0, None
    resumed = train(PRETRAINED, "broken")
    assert steps.taken == left
    assert resumed.record.pretrain_seconds > 0
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in unbroken.model.state_dict().items())


def test_a_source_of_another_training_is_not_gone_on_from(train, monkeypatch):
    """Its states have the fingerprint of the flow's."""
    steps = Steps(monkeypatch)
    for fingerprint, taken in (("one", 3), ("one", 3), ("other", 6)):
        train(PRETRAINED, fingerprint=fingerprint)
        assert steps.taken == taken


def test_pretraining_leaves_a_step_for_the_flow(train, quick):
    """However large its share."""
    options = PRETRAINED.options | {"source_pretrain": 0.9}
    trained = train(PRETRAINED.model_copy(update={"options": options, "steps": 2}))
    assert trained.record.pretrain_steps == 1
    assert [entry["step"] for entry in trained.history.entries] == [1]


def test_a_network_mean_is_trained_first_and_then_kept(train, tmp_path, quick):
    """It has states of its own; the flow's training leaves it as it was."""
    options = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "mean": "network", "low_rank": 0}
    choice = ModelConfig(preset="dualflow", options=options)
    trained = train(choice, config=quick.model_copy(update={"mean_steps": 3, "steps": 2}))
    assert isinstance(trained.model.mean_model, NetworkMean)
    assert [state.stem for state in states(tmp_path / "states" / "mean")] == ["state-00000002", "state-00000003"]
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
    errors = trained.record.mean["validation_mae"]
    assert set(errors) == {"local_linear", "network"}
    assert trained.model.spec.mean == min(errors, key=errors.get)


def test_nothing_to_train_on_is_said(train, small_flow):
    """One line, before anything is built."""
    with pytest.raises(DataError, match="no training pairs"):
        train(small_flow, pairs=PairDataset([]))


@pytest.mark.parametrize("off", [0.6, 1.0, 1.6])
def test_the_spread_is_set_right_on_people_held_out(train, held_out, off):
    """However wide training left the law, samples come to vary as much as targets do, and the card says by what."""
    choice = ModelConfig(preset="dualflow", options={"levels": 2, "steps": [1, 1], "hidden": [4, 4], "low_rank": 2})
    flow = train(choice).model
    calibrate(flow, held_out, 0)
    flow.priors[-1].base.rescale(off)
    before = flow.priors[-1].base.factors.detach().clone()
    scale = calibrate(flow, held_out, 1)
    torch.testing.assert_close(flow.priors[-1].base.factors, scale * before)
    assert scale * off == pytest.approx(1, rel=0.15)


def test_a_flow_without_a_low_rank_base_is_left_as_it_is(train, small_flow):
    """There is nothing that a scale could be taken up by, and the card says so."""
    options = {**small_flow.options, "low_rank": 0}
    assert train(small_flow.model_copy(update={"options": options})).record.spread_scale is None
