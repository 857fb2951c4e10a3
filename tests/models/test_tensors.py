"""Named tensors in a safetensors file."""

import pytest
import torch
from safetensors.torch import load_file

from dualflow.errors import CheckpointError
from dualflow.models.tensors import read_verified, save_tensors


def test_saved_tensors_are_restored_bit_for_bit(tmp_path):
    """Also views, and tensors that share storage."""
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"whole": whole, "steps": torch.tensor(3), "view": whole.T, "tied": whole, "row": whole[1]}
    save_tensors(tmp_path / "x.safetensors", tensors, {"a": "b"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    assert read_verified(tmp_path / "x.safetensors")[1] == {"a": "b"}


def test_every_flipped_bit_is_noticed(tmp_path):
    """In the data, the names, the metadata and the digest; a missing file and one without a digest are errors too."""
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"half": torch.ones(2, dtype=torch.bfloat16), "none": torch.zeros(0)}, {"step": "12"})
    data = path.read_bytes()
    fill = {index for index, byte in enumerate(data) if byte in b' "{}[],:'}  # the JSON around them
    for index in set(range(8, len(data))) - fill:
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
            read_verified(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        read_verified(path)
