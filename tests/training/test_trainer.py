"""The training loop: resumption bit for bit, skipped steps, selection of the weights."""

import os
import resource
import signal

import pytest
import torch
from torch import nn

from dualflow.data.dataset import PairDataset
from dualflow.errors import DualflowError
from dualflow.errors import StoppedError as TrainingStopped
from dualflow.flows.objective import Objective
from dualflow.training.checkpoint import forget_states, load_newest_state, states
from dualflow.training.context import TrainingContext
from dualflow.training.trainer import Trainer


class StoppedError(Exception):
    """Stands for the kill of a process."""


class Toy(Objective):
    """A convolution with dropout, whose loss is `spoilt` or which stops at given training calls.

    The loss of the `good`-th validation is lower by 10.
    """

    def __init__(self, spoilt=(), stop=None, good=None):
        super().__init__()
        torch.manual_seed(1)
        self.convolution, self.dropout = nn.Conv3d(1, 1, 3, padding=1), nn.Dropout(0.3)
        self.spoilt, self.stop, self.good, self.calls, self.validations = spoilt, stop, good, 0, 0

    def forward(self, target, source, side=None, mask=None, mean=None):
        self.calls += self.training
        if self.training and self.calls == self.stop:
            raise StoppedError
        factor = float("nan") if self.training and self.calls in self.spoilt else 1.0
        self.validations += not self.training
        bonus = 10.0 if not self.training and self.validations == self.good else 0.0
        return {"loss": factor * (self.point_estimate(self.dropout(source), side) - target).square().mean() - bonus}

    def point_estimate(self, source, side=None):
        return self.convolution(source)


class Preempted(Toy):
    """A toy to which a scheduler sends SIGTERM at the `at`-th training call."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, target, source, side=None, mask=None, mean=None):
        terms = super().forward(target, source, side, mask, mean)
        if self.training and self.calls == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms


class Leaky(Toy):
    """A toy that claims to be invertible, with round-trip errors `drift`, one per validation."""

    def __init__(self, drift):
        super().__init__()
        self.drift = drift

    def diagnostics(self, target, source, side, mask, *, round_trip):
        return {"round_trip": self.drift[self.validations - 1]} if round_trip else {}


@pytest.fixture
def train(phantoms, held_out, quick, tmp_path):
    """Fit a toy; by default seven steps with a validation after every two and after the last."""

    def go(model, folder="states", config=quick, validation=held_out, steps=7, seed=3, **options):
        context = TrainingContext(config, tmp_path / folder, seed, label="toy", **options)
        history = Trainer(model, phantoms, validation, context, steps=steps, learning_rate=0.01).fit()
        return model.state_dict(), history

    return go


def facts(history):
    """A history without its clock times."""
    return {key: value for key, value in vars(history).items() if key != "seconds"}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("spoilt", [(), (2, 3)])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(train, tmp_path, stop, spoilt):
    """Weights, their mean, moments, noise, history: wherever it was stopped, with skipped steps around too."""
    weights, history = train(Toy(spoilt), "unbroken")
    with pytest.raises(StoppedError):
        train(Toy(spoilt, stop), "broken")
    done = (stop - 1) // 2 * 2
    resumed = Toy([call - done for call in spoilt])
    again, history_again = train(resumed, "broken")
    assert resumed.calls == 7 - done
    assert_same(weights, again)
    assert facts(history) == facts(history_again)
    (left, left_facts), (right, right_facts) = (load_newest_state(tmp_path / name) for name in ("unbroken", "broken"))
    assert_same(left, right)
    assert left_facts["step"] == right_facts["step"] == 7


def test_a_finished_run_given_again_trains_nothing(train):
    """It returns what it had."""
    weights, history = train(Toy())
    model = Toy(stop=1)
    again, history_again = train(model)
    assert model.calls == 0
    assert_same(weights, again)
    assert history == history_again


def test_a_broken_newest_state_falls_back_to_the_one_before(train, tmp_path, capsys):
    """Cut short, it is left aside, and the end is the same."""
    weights, _ = train(Toy(), "unbroken")
    with pytest.raises(StoppedError):
        train(Toy(stop=6), "broken")
    newest = states(tmp_path / "broken")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    model = Toy()
    again, _ = train(model, "broken")
    assert model.calls == 5
    assert newest.name in capsys.readouterr().err
    assert_same(weights, again)


def test_states_of_another_training_are_not_gone_on_from(train, tmp_path):
    """Another fingerprint starts from nothing and removes them, also those of later steps."""
    train(Toy(), fingerprint="old")
    model = Toy()
    with pytest.raises(StoppedError):
        train(Toy(stop=4), fingerprint="new")
    assert [path.stem for path in states(tmp_path / "states")] == ["state-00000002"]
    train(model, fingerprint="new")
    assert model.calls == 5


def test_skipped_steps_are_counted_and_the_rest_goes_on(train, capsys):
    """Also the last step, at which a validation is due; the progress display ends at the total."""
    _, history = train(Toy(spoilt=(2, 7)))
    assert history.skipped == 2
    assert [entry["step"] for entry in history.entries] == [2, 4, 6, 7]
    assert all(entry["validation/loss"] < float("inf") for entry in history.entries)
    assert "loss" in history.entries[0]
    assert "loss" not in history.entries[-1]
    assert capsys.readouterr().err.splitlines()[-1].startswith("toy: 7/7 ")


def test_too_many_skipped_steps_in_a_row_end_it_with_the_remedy(train, quick):
    """One line that names training, step, rate and what to do; a step that works starts the count again."""
    config = quick.model_copy(update={"max_skipped": 2})
    train(Toy(spoilt=(1, 2, 4, 5)), "works", config)
    with pytest.raises(
        DualflowError, match=r"toy: 3 steps in a row .* at step 5; lower .*0\.01\) or use train\.precision"
    ):
        train(Toy(spoilt=(3, 4, 5)), "ends", config)


@pytest.mark.parametrize("drift", [0.25, float("nan")])
def test_a_round_trip_that_drifts_ends_it_with_the_remedy(train, tmp_path, quick, drift):
    """One line that names training, step, error and bound; the state before stays, the bad one is not written."""
    config = quick.model_copy(update={"max_round_trip": 0.125})
    said = rf"^toy: at step 4 .* by {drift:g}, more than train\.max_round_trip = 0\.125; lower train\.learning_rate.*$"
    with pytest.raises(DualflowError, match=said):
        train(Leaky([0.0625, drift]), config=config)
    assert [path.stem for path in states(tmp_path / "states")] == ["state-00000002"]
    _, history = train(Leaky([0.0625] * 4), "sound", config)
    assert [entry["validation/round_trip"] for entry in history.entries] == pytest.approx([0.0625] * 4, abs=1e-6)


def test_weights_are_the_averaged_ones_of_the_best_validation(train):
    """Not the last, and not the raw ones."""
    seen = {}

    def watch(step, metrics, model):
        seen[step] = metrics["validation/loss"], {key: value.clone() for key, value in model.state_dict().items()}

    weights, history = train(Toy(good=2), watch=watch)
    assert history.best_step == 4
    assert history.best == seen[4][0] < seen[7][0]
    assert_same(weights, seen[4][1])


def test_without_validation_the_last_averaged_weights_are_taken(train):
    """There is nothing to choose by."""
    weights, history = train(Toy(), validation=PairDataset([]))
    assert history.best_step == 7
    assert all("validation/loss" not in entry for entry in history.entries)
    assert not torch.equal(weights["convolution.weight"], Toy().state_dict()["convolution.weight"])


def test_seeds_decide_order_and_noise(train):
    """Same seed, same bits; another seed, others."""
    first, again, other = (
        train(Toy(), name, seed=seed)[0] for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )  # fmt: skip
    assert_same(first, again)
    assert not torch.equal(first["convolution.weight"], other["convolution.weight"])


def test_only_the_newest_states_are_kept_until_they_are_forgotten(train, tmp_path):
    """Two, and none afterwards."""
    train(Toy())
    assert [path.stem for path in states(tmp_path / "states")] == ["state-00000006", "state-00000007"]
    forget_states(tmp_path / "states")
    assert not states(tmp_path / "states")


@pytest.mark.parametrize("at", [1, 3, 6])
def test_sigterm_ends_a_run_with_a_state_of_the_step_at_hand(train, tmp_path, at):
    """It exits with a code of its own, nothing done is lost, and what goes on equals an unbroken run bit for bit."""
    weights, history = train(Toy(), folder="unbroken")
    with pytest.raises(TrainingStopped, match=f"SIGTERM after step {at}") as error:
        train(Preempted(at))
    assert error.value.exit_code == 75
    assert load_newest_state(tmp_path / "states")[1]["step"] == at
    again, resumed = train(Toy())
    assert_same(again, weights)
    assert facts(resumed) == facts(history)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_at_the_last_step_changes_nothing(train):
    """The work is done."""
    assert_same(train(Preempted(7))[0], train(Toy(), folder="unbroken")[0])


def test_patience_ends_a_training_that_no_longer_improves(train, quick):
    """After two validations without a better one; given again, or stopped on the way, it ends at the same step."""
    patient = quick.model_copy(update={"patience": 2})
    model = Toy(good=2)
    weights, history = train(model, "patient", config=patient, steps=40)
    assert (history.best_step, history.entries[-1]["step"], model.calls) == (4, 8.0, 8)
    model = Toy(good=2)
    again, _ = train(model, "patient", config=patient, steps=40)
    assert model.calls == 0
    assert_same(weights, again)
    endless = quick.model_copy(update={"patience": None})
    assert train(Toy(good=2), "endless", config=endless, steps=20)[1].entries[-1]["step"] == 20


def test_a_full_disk_costs_a_state_and_not_the_training(train, tmp_path, capsys):
    """The state before stays, it is said, and the weights are those of a disk with room."""
    weights, _ = train(Toy(), "roomy")
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
    said = capsys.readouterr().err
    assert "warning: toy: no state of step 4, the previous one stays" in said
    assert "free space or change the output folder" in said
    again, _ = train(Toy(), "full")
    assert_same(weights, again)


def test_augmentation_is_a_function_of_seed_and_step(train, quick):
    """A run that was stopped sees the same changes as one that was not, and other ones than another seed."""
    changed = quick.model_copy(update={"augment": quick.augment.model_copy(update={"probability": 0.8})})
    weights, _ = train(Toy(), "whole", config=changed)
    with pytest.raises(StoppedError):
        train(Toy(stop=4), "broken", config=changed)
    resumed, _ = train(Toy(), "broken", config=changed)
    assert_same(weights, resumed)
    plain, _ = train(Toy(), "plain")
    assert not torch.equal(plain["convolution.weight"], weights["convolution.weight"])
