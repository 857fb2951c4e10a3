"""Training of a flow on six tiny phantoms: mean, source and flow."""

import math
import weakref
from contextlib import nullcontext

import pytest
import torch

from dualflow.config import AugmentConfig, ModelConfig
from dualflow.data.dataset import PairDataset
from dualflow.errors import DataError
from dualflow.flows.flow_objective import FlowObjective
from dualflow.flows.source_spread import SPREADS
from dualflow.inference.predict import load_predictor
from dualflow.models.store import save_model
from dualflow.training import train_flow as module
from dualflow.training.checkpoint import load_newest_state, states


@pytest.mark.parametrize("spread", SPREADS)
def test_a_trained_flow_can_be_saved_and_loaded(train, small_flow, card, tmp_path, held_out, spread):
    """The loaded flow has the same estimate, density and samples; its history is finite, and it is invertible."""
    trained = train(small_flow.model_copy(update={"options": {**small_flow.options, "spread": spread}}))
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
    samples = [
        model.sample(source, side, n=2, generator=torch.Generator().manual_seed(1)) for model in (loaded, trained.model)
    ]
    assert torch.equal(*samples)


def test_the_flow_is_trained_on_cross_fitted_means(train, small_flow, phantoms, monkeypatch):
    """The mean of a training scan is fitted without its subject, so its error exceeds that of the final mean."""
    captured = {}

    def spy(trainer):
        captured.update(model=trainer.objective.flow, pairs=trainer.train)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Trainer, "fit", spy)
    with pytest.raises(KeyboardInterrupt):
        train(small_flow)
    errors = {"cross-fitted": 0.0, "in-sample": 0.0}
    for item in captured["pairs"].items:
        in_sample = captured["model"].mean(item["source"][None], item["side"][None])[0]
        for name, image in (("cross-fitted", item["mean"]), ("in-sample", in_sample)):
            errors[name] += float((image - item["target"])[item["mask"]].square().mean())
            assert not image[~item["mask"]].any()
    assert errors["cross-fitted"] > 1.2 * errors["in-sample"] > 0
    assert "mean" not in phantoms[0]


def test_a_flow_may_have_a_stacked_mean(train, small_flow, phantoms):
    """Its mean image is that of the fitted mean, its record has the choices, and training pairs keep no mean."""
    trained = train(small_flow.model_copy(update={"options": {**small_flow.options, "mean": "stacked"}}))
    assert {"ridge", "harmonisation", "abnormality", "weight", "gain_weight"} <= set(trained.record.mean)
    source = phantoms[0]["source"][None]
    assert torch.equal(trained.model.mean(source), trained.model.mean_model(source))
    assert not trained.model.mean(source)[:, :, ~phantoms[0]["mask"][0]].any()


def test_initialisation_uses_a_random_subset_of_scans(train, small_flow, phantoms, monkeypatch):
    """The subset has at most INITIALISATION_SCANS scans, follows the seed, and includes masks, means and spreads."""
    chosen = []

    def spy(model, batch):
        positions = range(len(phantoms))
        chosen.append([next(i for i in positions if torch.equal(phantoms[i]["target"], t)) for t in batch.target])
        assert batch.mask.dtype == torch.bool
        assert batch.mask.shape == batch.mean.shape == batch.spread.shape == batch.target.shape
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "initialize_flow", spy)
    monkeypatch.setattr(module, "INITIALISATION_SCANS", 3)
    for seed in (0, 0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(small_flow, seed=seed)
    assert all(len(set(positions)) == 3 for positions in chosen)
    assert chosen[0] == chosen[1]
    assert len({tuple(positions) for positions in chosen}) > 1


def test_a_resumed_flow_equals_an_uninterrupted_one_bit_for_bit(train, small_flow):
    """A flow with mean, actnorms and low-rank base, interrupted at a validation."""

    def stop(step, metrics, model):
        if step == 4:
            raise KeyboardInterrupt

    uninterrupted = train(small_flow, "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train(small_flow, "interrupted", watch=stop)
    resumed = train(small_flow, "interrupted")
    left, right = (result.model.state_dict() for result in (uninterrupted, resumed))
    assert all(torch.equal(value, right[key]) for key, value in left.items())
    assert uninterrupted.history.entries == resumed.history.entries


def test_the_objective_receives_the_progress_of_the_training(train, small_flow, monkeypatch):
    """The share of completed steps is set before each step, also after resuming."""
    shares = []
    monkeypatch.setattr(module.FlowObjective, "set_progress", lambda objective, share: shares.append(share))

    def stop(step, metrics, model):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_flow, watch=stop)
    assert shares == pytest.approx([step / 6 for step in range(4)])
    shares.clear()
    train(small_flow)  # from the state of step 2
    assert shares == pytest.approx([step / 6 for step in range(2, 6)])


class PretrainingSteps:
    """Count the steps of pre-training, and interrupt it before step `stop`."""

    def __init__(self, monkeypatch):
        self.taken, self.stop, forward = 0, None, module.SourceObjective.forward

        def counted(trainer, batch):
            if trainer.training and self.taken == self.stop:
                raise KeyboardInterrupt
            self.taken += trainer.training
            return forward(trainer, batch)

        monkeypatch.setattr(module.SourceObjective, "forward", counted)


PRETRAINED = ModelConfig(
    preset="srflow",
    options={
        "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "transition_steps": 1,
        "source_pretrain": 0.5, "source_frozen": 0.5,
    },
)  # fmt: skip


def source_weights(model):
    """Return a copy of the weights of a flow's source."""
    return {key: value.clone() for key, value in model.source.state_dict().items()}


def test_a_source_is_pretrained_and_then_frozen(train, tmp_path, monkeypatch):
    """Pre-training takes half of six steps; the source stays frozen for half of the remaining steps."""
    steps, sources = PretrainingSteps(monkeypatch), []
    set_progress = module.FlowObjective.set_progress

    def spy(objective, share):
        sources.append(source_weights(objective.flow))
        set_progress(objective, share)

    monkeypatch.setattr(module.FlowObjective, "set_progress", spy)
    trained = train(PRETRAINED, watch=lambda step, metrics, objective: sources.append(source_weights(objective.flow)))
    assert steps.taken == trained.record.pretrain_steps == 3
    assert [entry["step"] for entry in trained.history.entries] == [2, 3]
    assert trained.record.pretrain_seconds > 0
    start, second, after_second, third, end = sources
    torch.manual_seed(0)
    untrained = source_weights(module.DualFlow(trained.model.spec, shape=(16, 16, 16), side_features=1))
    assert not torch.equal(start["stem.weight"], untrained["stem.weight"])
    state = load_newest_state(tmp_path / "states" / "source")
    assert state is not None
    assert torch.equal(start["stem.weight"], state[0]["best.flow.source.stem.weight"])
    # At progress 0 and 1/3 the source is frozen, at 2/3 it is not.
    for frozen in (second, after_second, third):
        assert all(torch.equal(value, frozen[key]) for key, value in start.items())
    assert not torch.equal(end["stem.weight"], start["stem.weight"])


def test_patience_waits_for_the_release_of_the_source(train, quick, monkeypatch):
    """A flow that its first validation likes best still trains its source: the last phase is not dropped."""
    scores = iter(range(100))
    monkeypatch.setattr(module.FlowObjective, "selection_score", lambda *_: float(next(scores)))
    patient = quick.model_copy(update={"patience": 1, "validate_every": 1, "steps": 16})
    choice = PRETRAINED.model_copy(update={"options": PRETRAINED.options | {"source_pretrain": 0.0}})
    assert [entry["step"] for entry in train(choice, config=patient).history.entries] == list(range(1, 10))


def test_the_record_counts_the_steps_that_pretraining_took(train, monkeypatch):
    """It may end early or skip steps; the flow takes the steps that were planned for it."""
    history = module.History(entries=[{"step": 2.0}], skipped=1, seconds=3.0)
    monkeypatch.setattr(module, "_pretrain", lambda *_: history)
    trained = train(PRETRAINED)
    record = trained.record
    assert (record.pretrain_steps, record.pretrain_seconds, record.skipped_steps) == (2, 3.0, 1)
    assert trained.history.steps == 3


def test_without_pretraining_its_record_is_zero(train, small_flow, monkeypatch):
    """The record has no steps and no seconds of pre-training."""
    steps = PretrainingSteps(monkeypatch)
    record = train(small_flow).record
    assert steps.taken == record.pretrain_steps == 0
    assert record.pretrain_seconds == 0


@pytest.mark.parametrize(("stop", "remaining"), [(2, 1), (None, 0)], ids=["during pre-training", "afterwards"])
def test_a_resumed_pretraining_equals_an_uninterrupted_one_bit_for_bit(train, tmp_path, monkeypatch, stop, remaining):
    """Pre-training resumes from states in a subfolder, repeats no completed step, and keeps its seconds."""
    steps = PretrainingSteps(monkeypatch)
    uninterrupted = train(PRETRAINED, "uninterrupted")

    def stop_flow(step, metrics, model):
        raise KeyboardInterrupt

    steps.taken, steps.stop = 0, stop
    with pytest.raises(KeyboardInterrupt):
        train(PRETRAINED, "interrupted", watch=stop_flow)
    assert "state-00000002" in [state.stem for state in states(tmp_path / "interrupted" / "source")]
    steps.taken, steps.stop = 0, None
    resumed = train(PRETRAINED, "interrupted")
    assert steps.taken == remaining
    assert resumed.record.pretrain_seconds > 0
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in uninterrupted.model.state_dict().items())


def test_pretraining_does_not_resume_from_another_training(train, monkeypatch):
    """States of the source have the fingerprint of the flow's training."""
    steps = PretrainingSteps(monkeypatch)
    for fingerprint, taken in (("one", 3), ("one", 3), ("other", 6)):
        train(PRETRAINED, fingerprint=fingerprint)
        assert steps.taken == taken


def test_states_of_another_training_cost_no_pretraining(train, monkeypatch):
    """The flow removes its own stale states alone: a pre-training that was finished before is not repeated."""
    steps = PretrainingSteps(monkeypatch)
    train(PRETRAINED, fingerprint="one")

    def stop_flow(step, metrics, model):
        raise KeyboardInterrupt

    steps.taken = 0
    with pytest.raises(KeyboardInterrupt):
        train(PRETRAINED, fingerprint="other", watch=stop_flow)
    assert steps.taken == 3
    train(PRETRAINED, fingerprint="other")
    assert steps.taken == 3


def test_pretraining_leaves_a_step_for_the_flow(train, quick):
    """Even if its share rounds to all steps."""
    options = PRETRAINED.options | {"source_pretrain": 0.9}
    trained = train(PRETRAINED.model_copy(update={"options": options, "steps": 2}))
    assert trained.record.pretrain_steps == 1
    assert [entry["step"] for entry in trained.history.entries] == [1]


def test_augmented_intensities_do_not_change_a_spread_that_follows_the_source(train, small_flow, quick, monkeypatch):
    """An augmented scan would count as an unusual one, so each scan has its spread from before."""
    batches, forward = [], FlowObjective.forward

    def spy(objective, batch):
        if objective.training:
            batches.append(batch)
        return forward(objective, batch)

    monkeypatch.setattr(FlowObjective, "forward", spy)
    choice = ModelConfig(preset="dualflow", options={**small_flow.options, "spread": "source"}, steps=2)
    intensities = AugmentConfig(probability=1.0, shift_voxels=0, rotation_deg=0, scale=0)
    for name, augment in (("plain", quick.augment), ("augmented", intensities)):
        train(choice, config=quick.model_copy(update={"augment": augment}), fingerprint=name)
    for plain, augmented in zip(batches[:2], batches[2:], strict=True):
        assert not torch.equal(plain.source, augmented.source)
        assert torch.equal(plain.spread, augmented.spread)


def test_training_without_pairs_is_refused(train, small_flow):
    """A flow needs at least one training pair."""
    with pytest.raises(DataError, match="no training pairs"):
        train(small_flow, pairs=PairDataset([]))


def test_real_values_are_not_dequantised(train, small_flow):
    """The error comes before the fits."""
    options = small_flow.options | {"dequantisation": "uniform"}
    with pytest.raises(DataError, match=r"expected multiples of bin_width = 1; choose dequantisation: none"):
        train(small_flow.model_copy(update={"options": options}))


def test_the_whitening_is_fitted_before_the_flow(train, small_default):
    """Its correlation is that of the residuals, no longer white noise."""
    assert train(small_default).model.whitening.shares[0] < 1


def test_the_base_is_fitted_in_orthonormal_directions(train, small_default):
    """Its directions are no longer those of a new base."""
    w = train(small_default).model.base.directions
    torch.testing.assert_close(w.T @ w, torch.eye(w.shape[1]), atol=1e-4, rtol=0)
    assert not torch.equal(w, torch.eye(*w.shape))


def test_the_fits_after_the_last_step_have_the_memory_of_the_trainer(train, small_default, monkeypatch):
    """Adam's moments, averaged and best weights are freed before the base is fitted."""
    trainers, alive, fit, fit_base = [], [], module.Trainer.fit, module.fit_base

    def fitted(trainer):
        trainers.append(weakref.ref(trainer.optimiser))
        return fit(trainer)

    def spy(*args, initial=False, **options):
        if not initial:
            alive.extend(reference() for reference in trainers)
        return fit_base(*args, initial=initial, **options)

    monkeypatch.setattr(module.Trainer, "fit", fitted)
    monkeypatch.setattr(module, "fit_base", spy)
    train(small_default)
    assert alive == [None]


def test_the_base_is_fitted_in_the_precision_of_the_training(train, small_default, quick, monkeypatch):
    """Before the first step and after the last one."""
    chosen = []

    def spy(precision, device):
        chosen.append(precision)
        return nullcontext()

    monkeypatch.setattr("dualflow.training.fit_base.autocast", spy)
    train(small_default, config=quick.model_copy(update={"precision": "bfloat16"}))
    assert chosen == ["bfloat16"] * 2


def test_the_probe_sees_the_calibrated_flow(train, small_default, monkeypatch):
    """Its pairs have the spreads of the flow that is saved, not those of before the calibration."""
    monkeypatch.setattr("dualflow.training.calibrate.MIN_PEOPLE", 2)
    seen = []

    def watch(name, position):
        function = getattr(module, name)

        def call(*args):
            seen.append(args[position])
            return function(*args)

        monkeypatch.setattr(module, name, call)

    watch("calibrate", 2)
    watch("side_probe", 1)
    gain = train(small_default).record.calibration["voxel_gain"]
    assert gain != 1
    before, after = (pairs[0]["spread"] for pairs in seen)
    torch.testing.assert_close(after, gain * before)
