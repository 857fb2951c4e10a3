"""Models and states on disk."""

import json

import pytest
import torch

from dualflow.errors import CheckpointError
from dualflow.training.checkpoint import load_card, load_newest_state, load_weights, save_model, save_state, states

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)}


def test_a_model_reads_back(tmp_path):
    """Weights bit for bit, also views and shared ones, and the card with the hash of the weights."""
    tied = WEIGHTS | {"view": WEIGHTS["a"].T, "tied": WEIGHTS["a"]}
    files = save_model(tmp_path / "model", tied, {"kind": "flow"})
    assert [file.name for file in files] == ["model.safetensors", "model.json"]
    read = load_weights(tmp_path / "model")
    assert all(torch.equal(read[key], value) for key, value in tied.items())
    assert load_card(tmp_path / "model")["kind"] == "flow"


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "exchange"])
def test_weights_that_do_not_match_their_card_are_refused(tmp_path, harm):
    """One flipped bit is enough."""
    files = save_model(tmp_path / "model", WEIGHTS, {})
    other = save_model(tmp_path / "other", WEIGHTS | {"a": WEIGHTS["a"] + 1}, {})
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    {
        "flip": lambda: files[0].write_bytes(data),
        "cut": lambda: files[0].write_bytes(data[:-4]),
        "remove": files[0].unlink,
        "exchange": lambda: files[0].write_bytes(other[0].read_bytes()),
    }[harm]()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not match the hash"):
        load_weights(tmp_path / "model")


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_folder_without_a_card_is_no_model(tmp_path, text):
    """Missing, cut short, or something else."""
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_card(tmp_path)


def test_the_newest_whole_state_is_found(tmp_path, capsys):
    """Not the oldest, not one that is cut short or without its facts, and none where none is whole."""
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
    assert "going back" in capsys.readouterr().out
