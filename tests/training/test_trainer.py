"""The training loop: bit-exact resumption, skipped steps, and selection of the weights."""

import os
import resource
import signal

import pytest
import torch
from torch import nn

from dualflow.data.dataset import PairDataset
from dualflow.errors import DualflowError, StoppedError
from dualflow.flows.objective import Objective
from dualflow.training import trainer as module
from dualflow.training.checkpoint import forget_states, load_newest_state, states
from dualflow.training.context import TrainingContext
from dualflow.training.distributed import ProcessGroup
from dualflow.training.trainer import Trainer


class KilledError(Exception):
    """Simulates the kill of a process."""


class Toy(Objective):
    """A convolution with dropout.

    Args:
        non_finite: training calls whose loss is NaN, from 1.
        kill_at: training call that is killed.
        good: validation whose loss is lower by 10.
    """

    def __init__(self, non_finite=(), kill_at=None, good=None):
        super().__init__()
        torch.manual_seed(1)
        self.convolution, self.dropout = nn.Conv3d(1, 1, 3, padding=1), nn.Dropout(0.3)
        self.non_finite, self.kill_at, self.good = non_finite, kill_at, good
        self.calls, self.validations = 0, 0

    def forward(self, batch):
        self.calls += self.training
        if self.training and self.calls == self.kill_at:
            raise KilledError
        factor = float("nan") if self.training and self.calls in self.non_finite else 1.0
        self.validations += not self.training
        bonus = 10.0 if not self.training and self.validations == self.good else 0.0
        image = self.point_estimate(self.dropout(batch.source), batch.side)
        return {"loss": factor * (image - batch.target).square().mean() - bonus}

    def point_estimate(self, source, side=None):
        return self.convolution(source)


class Preempted(Toy):
    """A toy that receives SIGTERM at the `at`-th training call, as from a scheduler."""

    def __init__(self, at, **options):
        super().__init__(**options)
        self.at = at

    def forward(self, batch):
        terms = super().forward(batch)
        if self.training and self.calls == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms


class Drifting(Toy):
    """A toy whose round-trip error at each validation is the next value of `drift`."""

    def __init__(self, drift):
        super().__init__()
        self.drift = drift

    def diagnostics(self, batch, *, round_trip):
        return {"round_trip": self.drift[self.validations - 1]} if round_trip else {}


@pytest.fixture
def train(phantoms, held_out, quick, tmp_path):
    """Fit a toy; by default seven steps, with a validation after every second step and after the last."""

    def run(
        model,
        folder="states",
        config=quick,
        validation=held_out,
        steps=7,
        seed=3,
        keep_start=False,
        frozen=0.0,
        **options,
    ):
        context = TrainingContext(config, tmp_path / folder, seed, label="toy", **options)
        plan = {"steps": steps, "learning_rate": 0.01, "keep_start": keep_start, "frozen": frozen}
        history = Trainer(model, phantoms, validation, context, **plan).fit()
        return model.state_dict(), history

    return run


def untimed(history):
    """Return the fields of a history without its seconds."""
    return {key: value for key, value in vars(history).items() if key != "seconds"}


def assert_same(left, right):
    """Assert that two state dicts are equal bit for bit."""
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_flipped_bit_in_a_state_is_not_resumed(train, tmp_path, capsys, damaged):
    """The older state is used, or the training starts afresh; the weights equal those of an unbroken training."""
    weights, history = train(Toy(), "unbroken")
    with pytest.raises(KilledError):
        train(Toy(kill_at=6), "killed")
    newest = states(tmp_path / "killed")[::-1][:damaged]
    for state in newest:
        data = state.read_bytes()
        state.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    model = Toy()
    resumed_weights, resumed_history = train(model, "killed")
    assert_same(weights, resumed_weights)
    assert untimed(history) == untimed(resumed_history)
    assert model.calls == {1: 5, 2: 7}[damaged]
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("warning:")]
    assert [str(state) in line for state, line in zip(newest, warnings, strict=True)] == [True] * damaged
    assert warnings[-1].endswith({1: "trying the previous one", 2: "training afresh"}[damaged])


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("non_finite", [(), (2, 3)])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(train, tmp_path, kill_at, non_finite):
    """Weights, EMA, Adam's moments, random numbers and history are equal, wherever the kill was."""
    weights, history = train(Toy(non_finite), "uninterrupted")
    with pytest.raises(KilledError):
        train(Toy(non_finite, kill_at), "killed")
    done = (kill_at - 1) // 2 * 2
    resumed = Toy([call - done for call in non_finite])
    resumed_weights, resumed_history = train(resumed, "killed")
    assert resumed.calls == 7 - done
    assert_same(weights, resumed_weights)
    assert untimed(history) == untimed(resumed_history)
    (left, left_facts), (right, right_facts) = (
        load_newest_state(tmp_path / name) for name in ("uninterrupted", "killed")
    )
    assert_same(left, right)
    assert left_facts["step"] == right_facts["step"] == 7


def test_each_process_resumes_with_its_own_terms(phantoms, held_out, quick, tmp_path, monkeypatch):
    """The next entry of the history averages them; with the terms of the main process alone it would differ."""

    def trainer(rank):
        context = TrainingContext(quick, tmp_path / "states", 3, label="toy", group=ProcessGroup(rank=rank))
        return Trainer(Toy(), phantoms, held_out, context, steps=7, learning_rate=0.01)

    terms = [{"loss": [1.0, 2.0]}, {"loss": [3.0, 4.0]}]
    monkeypatch.setattr(ProcessGroup, "gathered", lambda *_: terms)
    trainer(0)._save(2)
    for rank, expected in ((0, terms[0]), (1, terms[1]), (2, terms[0])):
        resumed = trainer(rank)
        assert resumed._resume() == 2
        assert resumed.term_values == expected


def test_repeating_a_finished_training_is_a_no_op(train):
    """It returns the same weights and history."""
    weights, history = train(Toy())
    model = Toy(kill_at=1)
    repeated_weights, repeated_history = train(model)
    assert model.calls == 0
    assert_same(weights, repeated_weights)
    assert history == repeated_history


def test_a_truncated_state_falls_back_to_the_previous_one(train, tmp_path, capsys):
    """The truncated state is named and skipped, and the resulting weights are the same."""
    weights, _ = train(Toy(), "uninterrupted")
    with pytest.raises(KilledError):
        train(Toy(kill_at=6), "killed")
    newest = states(tmp_path / "killed")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    model = Toy()
    resumed, _ = train(model, "killed")
    assert model.calls == 5
    assert newest.name in capsys.readouterr().err
    assert_same(weights, resumed)


def test_states_of_another_training_are_not_resumed(train, tmp_path, capsys):
    """A training with another fingerprint starts from step 0 and removes all states, loudly, also of later steps."""
    train(Toy(), fingerprint="old")
    model = Toy()
    with pytest.raises(KilledError):
        train(Toy(kill_at=4), fingerprint="new")
    assert [path.stem for path in states(tmp_path / "states")] == ["state-00000002"]
    train(model, fingerprint="new")
    assert model.calls == 5
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:"))
    assert f"toy: the states in {tmp_path / 'states'} are removed" in warning


def test_another_precision_after_an_interruption_is_announced(train, capsys, monkeypatch):
    """A device without bfloat16 goes on in float32, and the weights are no longer those of an unbroken training."""
    with pytest.raises(KilledError):
        train(Toy(kill_at=4))
    monkeypatch.setattr(module, "chosen_precision", lambda *_: "another")
    train(Toy())
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "continued in another" in warnings[0]


def test_states_of_an_earlier_format_are_not_resumed(train, monkeypatch):
    """They hold other facts; a training of an earlier version starts afresh."""
    monkeypatch.setattr(module, "STATE_FORMAT", module.STATE_FORMAT - 1)
    train(Toy())
    monkeypatch.undo()
    model = Toy()
    train(model)
    assert model.calls == 7


def test_skipped_steps_are_counted(train, capsys):
    """Validations and the progress display continue, also if the last step is skipped."""
    _, history = train(Toy(non_finite=(2, 7)))
    assert history.skipped == 2
    assert [entry["step"] for entry in history.entries] == [2, 4, 6, 7]
    assert all(entry["validation/loss"] < float("inf") for entry in history.entries)
    assert "loss" in history.entries[0]
    assert "loss" not in history.entries[-1]
    assert capsys.readouterr().err.splitlines()[-1].startswith("toy: 7/7 ")


def test_too_many_skipped_steps_in_a_row_end_the_training(train, quick):
    """The error names training, step, learning rate and remedy; a finite step resets the count."""
    config = quick.model_copy(update={"max_skipped": 2})
    train(Toy(non_finite=(1, 2, 4, 5)), "works", config)
    with pytest.raises(
        DualflowError, match=r"toy: 3 steps in a row .* at step 5; lower .*0\.01\) or use train\.precision"
    ):
        train(Toy(non_finite=(3, 4, 5)), "ends", config)


@pytest.mark.parametrize("drift", [0.25, float("nan")])
def test_a_large_round_trip_error_ends_the_training(train, tmp_path, quick, drift):
    """The error names training, step, error, bound and remedy; only the previous state remains."""
    config = quick.model_copy(update={"max_round_trip": 0.125})
    message = (
        rf"^toy: at step 4 .* by {drift:g}, more than train\.max_round_trip = 0\.125; lower train\.learning_rate.*$"
    )
    with pytest.raises(DualflowError, match=message):
        train(Drifting([0.0625, drift]), config=config)
    assert [path.stem for path in states(tmp_path / "states")] == ["state-00000002"]
    _, history = train(Drifting([0.0625] * 4), "sound", config)
    assert [entry["validation/round_trip"] for entry in history.entries] == pytest.approx([0.0625] * 4, abs=1e-6)


def test_the_averaged_weights_of_the_best_validation_are_selected(train):
    """The result is neither the last weights nor the raw ones."""
    validations = {}

    def watch(step, metrics, model):
        validations[step] = (
            metrics["validation/loss"],
            {key: value.clone() for key, value in model.state_dict().items()},
        )

    weights, history = train(Toy(good=2), watch=watch)
    assert history.best_step == 4
    assert history.best == validations[4][0] < validations[7][0]
    assert min((entry["validation/score"], entry["step"]) for entry in history.entries) == (history.best, 4)
    assert_same(weights, validations[4][1])


def test_without_validation_the_last_averaged_weights_are_selected(train):
    """The best step is the last one."""
    weights, history = train(Toy(), validation=PairDataset([]))
    assert history.best_step == 7
    assert all("validation/loss" not in entry for entry in history.entries)
    assert not torch.equal(weights["convolution.weight"], Toy().state_dict()["convolution.weight"])


def test_the_seed_determines_order_and_noise(train):
    """The same seed gives the same weights bit for bit; another seed gives other weights."""
    first, repeated, other = (
        train(Toy(), name, seed=seed)[0] for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )  # fmt: skip
    assert_same(first, repeated)
    assert not torch.equal(first["convolution.weight"], other["convolution.weight"])


def test_only_the_two_newest_states_are_kept(train, tmp_path):
    """`forget_states` removes them."""
    train(Toy())
    assert [path.stem for path in states(tmp_path / "states")] == ["state-00000006", "state-00000007"]
    forget_states(tmp_path / "states")
    assert not states(tmp_path / "states")


@pytest.mark.parametrize("at", [1, 3, 6])
def test_sigterm_ends_a_training_after_saving_the_current_step(train, tmp_path, at):
    """It has its own exit code, no step is lost, and the resumed training equals an uninterrupted one bit for bit."""
    weights, history = train(Toy(), folder="uninterrupted")
    with pytest.raises(StoppedError, match=f"SIGTERM after step {at}") as error:
        train(Preempted(at))
    assert error.value.exit_code == 75
    assert load_newest_state(tmp_path / "states")[1]["step"] == at
    resumed_weights, resumed_history = train(Toy())
    assert_same(resumed_weights, weights)
    assert untimed(resumed_history) == untimed(history)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_at_the_last_step_changes_nothing(train):
    """The training is already complete."""
    assert_same(train(Preempted(7))[0], train(Toy(), folder="uninterrupted")[0])


def test_the_start_is_kept_if_training_never_improves_it(train, quick):
    """The initial weights are a candidate of step 0, also for patience; without the option they are not."""
    initial = Toy().state_dict()
    weights, history = train(Toy(good=1), keep_start=True)
    assert_same(weights, initial)
    assert history.best_step == 0
    assert [entry["step"] for entry in history.entries] == [0.0, 2.0, 4.0, 6.0, 7.0]
    weights, history = train(Toy(good=3), "better", keep_start=True)
    assert history.best_step == 4
    weights, history = train(Toy(good=1), "ordinary")
    assert history.best_step == 2
    patient = quick.model_copy(update={"patience": 2})
    _, history = train(Toy(good=1), "patient", config=patient, keep_start=True)
    assert history.entries[-1]["step"] == 4.0


def test_a_resumed_training_keeps_its_start(train):
    """The validation of the initial weights is not repeated, and they remain a candidate."""
    initial = Toy().state_dict()
    with pytest.raises(KilledError):
        train(Toy(good=1, kill_at=4), keep_start=True)
    weights, history = train(Toy(), keep_start=True)
    assert_same(weights, initial)
    assert [entry["step"] for entry in history.entries] == [0.0, 2.0, 4.0, 6.0, 7.0]


def test_patience_ends_a_training_that_no_longer_improves(train, quick):
    """It ends after two validations without improvement; repeating it trains nothing."""
    patient = quick.model_copy(update={"patience": 2})
    model = Toy(good=2)
    weights, history = train(model, "patient", config=patient, steps=40)
    assert (history.best_step, history.entries[-1]["step"], model.calls) == (4, 8.0, 8)
    model = Toy(good=2)
    repeated, _ = train(model, "patient", config=patient, steps=40)
    assert model.calls == 0
    assert_same(weights, repeated)
    endless = quick.model_copy(update={"patience": None})
    assert train(Toy(good=2), "endless", config=endless, steps=20)[1].entries[-1]["step"] == 20


@pytest.mark.parametrize(("frozen", "last"), [(0.0, 8), (0.1, 8), (0.25, 14), (0.26, 16)])
def test_patience_counts_from_the_release_of_a_frozen_part(train, quick, frozen, last):
    """The best step is 4 of 40: two validations later the training ends, or two validations after the release."""
    patient = quick.model_copy(update={"patience": 2})
    model = Toy(good=2)
    _, history = train(model, config=patient, steps=40, frozen=frozen)
    assert (history.best_step, history.entries[-1]["step"], model.calls) == (4, last, last)


def test_patience_is_asked_at_validations_alone_also_after_sigterm(train, quick):
    """After the release at step 6, patience has run out at step 14, which is no validation: step 16 is the next."""
    patient = quick.model_copy(update={"patience": 2, "validate_every": 4})
    options = {"config": patient, "steps": 40, "frozen": 0.15}
    weights, history = train(Toy(good=1), folder="uninterrupted", **options)
    assert history.entries[-1]["step"] == 16
    with pytest.raises(StoppedError, match="SIGTERM after step 15"):
        train(Preempted(15, good=1), **options)
    resumed, resumed_history = train(Toy(), **options)
    assert_same(resumed, weights)
    assert untimed(resumed_history) == untimed(history)


def test_a_full_disk_loses_a_state_but_not_the_training(train, tmp_path, capsys):
    """A warning is printed, the previous state remains, and the weights are the same."""
    weights, _ = train(Toy(), "enough space")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, _entry, _model):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        full, _ = train(Toy(), "full", watch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(weights, full)
    assert [path.name for path in states(tmp_path / "full")] == ["state-00000002.safetensors"]
    message = capsys.readouterr().err
    assert "warning: toy: the state of step 4 is not saved, the previous one remains" in message
    assert "free space or change the output folder" in message
    resumed, _ = train(Toy(), "full")
    assert_same(weights, resumed)


def test_augmentation_is_a_function_of_seed_and_step(train, quick):
    """A resumed training draws the same augmentations as an uninterrupted one."""
    config = quick.model_copy(update={"augment": quick.augment.model_copy(update={"probability": 0.8})})
    weights, _ = train(Toy(), "uninterrupted", config=config)
    with pytest.raises(KilledError):
        train(Toy(kill_at=4), "killed", config=config)
    resumed, _ = train(Toy(), "killed", config=config)
    assert_same(weights, resumed)
    plain, _ = train(Toy(), "plain")
    assert not torch.equal(plain["convolution.weight"], weights["convolution.weight"])
