"""Saving, loading and removal of training states."""

import json

import torch

from dualflow.training.checkpoint import forget_states, load_newest_state, save_state, states


def test_the_newest_intact_state_is_loaded(tmp_path, capsys):
    """Truncated states and states without metadata are skipped; without an intact state the result is None."""
    assert load_newest_state(tmp_path) is None
    for step in (1, 20, 300):
        save_state(tmp_path, step, {"a": torch.full((2,), float(step))}, {"step": step, "best": float("inf")})
    assert [path.stem for path in states(tmp_path)] == ["state-00000020", "state-00000300"]
    tensors, facts = load_newest_state(tmp_path)
    assert facts == {"step": 300, "best": float("inf")}
    assert tensors["a"].tolist() == [300, 300]
    states(tmp_path)[1].write_bytes(b"\x08" + bytes(7) + json.dumps({}).encode())
    assert load_newest_state(tmp_path)[1]["step"] == 20
    states(tmp_path)[0].write_bytes(b"")
    assert load_newest_state(tmp_path) is None
    assert "trying the previous one" in capsys.readouterr().err


def test_two_intact_states_are_kept_after_a_fallback(tmp_path):
    """A damaged state that is newer than the resumed one does not displace it."""
    for step in (1, 20, 300):
        save_state(tmp_path, step, {"a": torch.zeros(1)}, {})
    states(tmp_path)[-1].write_bytes(b"damaged")
    save_state(tmp_path, 40, {"a": torch.zeros(1)}, {})
    assert [path.stem for path in states(tmp_path)] == ["state-00000020", "state-00000040"]


def test_states_of_a_training_and_its_parts_are_removed(tmp_path):
    """States of the mean and the source are removed with those of the flow."""
    for folder in (tmp_path, tmp_path / "mean", tmp_path / "source"):
        save_state(folder, 1, {"a": torch.zeros(1)}, {})
    forget_states(tmp_path)
    assert not list(tmp_path.rglob("state-*"))
